"""Continuous integration of the template and of onloop."""

import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.template.linters import LINTED, lint
from tests.template.service import ONLOOP, TEMPLATE

WORKFLOW = ".github/workflows/ci.yml"
COMPAT = "src/onloop/_compat.py"


def jobs() -> dict[str, Any]:
    text = (TEMPLATE / WORKFLOW).read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)["jobs"]
    return found


def bound(name: str, onloop: Path) -> tuple[int, ...]:
    text = (onloop / COMPAT).read_text(encoding="utf-8")
    [numbers] = re.findall(rf"^{name}_DJANGO = \((\d+), (\d+)\)$", text, re.MULTILINE)
    return tuple(map(int, numbers))


def test_workflow_is_valid() -> None:
    for command in LINTED["ci.yml"]:
        lint(*command, WORKFLOW, cwd=TEMPLATE)


def test_workflow_tests_onloop_from_the_oldest_to_the_newest_django() -> None:
    rows = jobs()["onloop"]["strategy"]["matrix"]["include"]
    versions = {tuple(map(int, row["django"].split("."))) for row in rows}
    assert min(versions) == bound("OLDEST", ONLOOP)
    assert max(versions) == bound("NEWEST", ONLOOP)


def test_prerelease_job_makes_onloop_serve_with_a_django_that_it_does_not_know(
    tmp_path: Path,
) -> None:
    copy = tmp_path / ONLOOP.relative_to(TEMPLATE)
    (copy / COMPAT).parent.mkdir(parents=True)
    (copy / COMPAT).write_bytes((ONLOOP / COMPAT).read_bytes())
    steps = [step.get("run", "") for step in jobs()["onloop-prerelease"]["steps"]]
    [command] = [step for step in steps if "NEWEST_DJANGO" in step]
    subprocess.run(["bash", "-ec", command], cwd=tmp_path, check=True)
    assert bound("NEWEST", copy) > bound("NEWEST", ONLOOP)
