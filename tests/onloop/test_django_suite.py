"""Django's own tests pass on onloop."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parent / "django_suite" / "run.py"


@pytest.mark.xdist_group("django suite")
def test_djangos_own_tests_pass() -> None:
    done = subprocess.run(
        [sys.executable, RUN],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    ran = re.search(r"^Ran (\d+) tests", done.stdout, re.MULTILINE)
    assert ran and int(ran[1]) > 1000
