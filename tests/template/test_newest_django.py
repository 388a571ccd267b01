"""onloop's own tests on the newest Django; the other tests run on the oldest."""

import re
from pathlib import Path

import pytest

from tests.template import interpreters
from tests.template.prompts import choices
from tests.template.service import TEMPLATE, inherited, succeed

SUITE = "tests/onloop/test_django_suite.py"
# These do not depend on Django's version, test each version themselves, or take long:
# the workflow runs the last three on each.
OTHERS = (
    *("distribution", "formatter", "health", "log_live", "plugin_blocking", "queue"),
    *("thread_limit", "threads_live"),
    *("instrumentation", "plugin_isolation", "runserver"),
)


@pytest.mark.parametrize(
    "selected",
    [
        pytest.param(selected, marks=pytest.mark.xdist_group(name), id=name)
        for name, selected in (
            ("newest Django, its suite", [SUITE]),
            (
                "newest Django",
                [
                    *("tests/onloop", f"--ignore={SUITE}"),
                    *(f"--ignore=tests/onloop/test_{name}.py" for name in OTHERS),
                ],
            ),
        )
    ],
)
def test_onloop_passes_its_tests(selected: list[str], tmp_path: Path) -> None:
    newest = choices("django_version")[-1]
    python = interpreters.find("3.12", newest=True)
    uv_run = [interpreters.UV, "run", "--python", python, "--no-group", "redis"]
    command = [*uv_run, "--with", f"django~={newest}.0", "pytest", "-n0", *selected]
    output = succeed(
        [*command, "--basetemp", tmp_path / "pytest"],
        TEMPLATE,
        # Installed and compiled once for both.
        inherited() | {"UV_PROJECT_ENVIRONMENT": "build/newest-django"},
    )
    assert f"django: version: {newest}." in output
    assert re.search(r"\d+ passed in", output)
    assert not re.search(r"\d+ (skipped|deselected|xfailed)", output)
