"""Continuous integration of the template and of onloop."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
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


def test_workflow_tests_onloop_on_each_python_that_its_readme_names() -> None:
    rows = jobs()["onloop"]["strategy"]["matrix"]["include"]
    readme = (ONLOOP / "README.md").read_text(encoding="utf-8")
    [(oldest, newest)] = re.findall(r"Python 3\.(\d+) to 3\.(\d+)", readme)
    named = {f"3.{minor}" for minor in range(int(oldest), int(newest) + 1)}
    assert named <= {row["python"] for row in rows}
    changelog = (ONLOOP / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"Python 3.{oldest} to 3.{newest}" in changelog


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


@pytest.mark.parametrize(
    ("tag", "version", "section", "released"),
    [
        ("0.2.0", "0.2.0", "## [0.2.0] - 2026-11-21\n\n- new\n", True),
        ("onloop-0.2.0", "0.2.0", "## [0.2.0] - 2026-11-21\n\n- new\n", True),
        ("0.2.0", "0.3.0", "## [0.2.0] - 2026-11-21\n\n- new\n", False),
        ("0.2.0", "0.2.0", "## [0.2.0] - 2026-11-21\n", False),
        ("0.2.0", "0.2.0", "", False),
    ],
)
def test_tag_is_released_if_version_and_changelog_agree(
    tmp_path: Path, tag: str, version: str, section: str, released: bool
) -> None:
    onloop = tag.startswith("onloop-")
    folder = tmp_path / ONLOOP.relative_to(TEMPLATE) if onloop else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(f'version = "{version}"\n')
    changelog = f"# Changelog\n\n{section}\n## [0.1.0] - 2026-11-20\n\n- old\n"
    (folder / "CHANGELOG.md").write_text(changelog)
    # In place of GitHub's: it prints what it was told.
    (tmp_path / "gh").write_text('#!/bin/sh\necho "$@"; cat notes.md\n')
    (tmp_path / "gh").chmod(0o755)
    command = jobs()["release"]["steps"][-1]["run"]
    done = subprocess.run(
        ["bash", "-ec", command],
        cwd=tmp_path,
        env=os.environ | {"TAG": tag, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) is released
    assert (f"release create {tag} --verify-tag" in done.stdout) is released
    assert ("- new" in done.stdout) is released
    assert "- old" not in done.stdout
