"""The ranges of dependencies, at both ends, on the oldest and the newest Python.

`make test ONLY=tests/template/bounds.py` runs all of it, which takes minutes;
test_bounds.py is the part that each run of the suite tries.
"""

import itertools
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.template import interpreters
from tests.template.conftest import Bake
from tests.template.prompts import choices
from tests.template.service import ONLOOP, TEMPLATE, Service, finish, inherited, succeed

# Those that bring the most dependencies.
ANSWERS = {
    "database": "postgresql",
    "admin": "true",
    "api": "ninja",
    "metrics": "prometheus",
}
MINIMUM = {"5.2": "3.11", "6.1": "3.12"}
RESOLUTIONS = ("lowest-direct", "highest")


def requirements(folder: Path) -> Iterator[Requirement]:
    """Those that users, developers and builds have."""
    data = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    project = data["project"]
    groups = [
        project["dependencies"],
        *project.get("optional-dependencies", {}).values(),
        *data.get("dependency-groups", {}).values(),
        data.get("build-system", {}).get("requires", []),
    ]
    yield from map(Requirement, itertools.chain(*groups))


def lowest(requirement: Requirement) -> str | None:
    """The version that it begins with, without zeros at the end."""
    bounds = [s.version for s in requirement.specifier if s.operator in (">=", "~=")]
    return re.sub(r"(\.0)+$", "", bounds[0]) if bounds else None


def assert_lowest_are_installed(service: Service) -> None:
    output = service.run("uv pip list --quiet --python .venv --format json")
    installed = {
        each["name"]: Requirement(f"x>={each['version']}")
        for each in json.loads(output)
    }
    allowed: dict[str, set[str | None]] = {}
    # Of two for one package the higher counts.
    for requirement in (*requirements(service.path), *requirements(ONLOOP)):
        name = canonicalize_name(requirement.name)
        allowed.setdefault(name, set()).add(lowest(requirement))
    # The one has a folder, the other an environment of its own.
    for package, bounds in allowed.items():
        if package not in ("django-onloop", "uv-build"):
            assert lowest(installed[package]) in bounds, package


def prove(service: Service, python: str, resolution: str) -> None:
    """Install, then test, check, type-check and start the service."""
    environment = {"UV_PYTHON": python, "UV_RESOLUTION": resolution}
    service.run("uv sync", **environment)
    if resolution == "lowest-direct":
        assert_lowest_are_installed(service)
    environment["UV_NO_SYNC"] = "1"
    output = service.run("uv run pytest", **environment)
    assert re.search(r"\d+ passed in", output)
    assert not re.search(r"\d+ (skipped|deselected|xfailed)", output)
    service.run("uv run python -W error manage.py check", **environment)
    service.run("uv run mypy .", **environment)
    command, *_ = service.readme_commands()
    with service.serve(f"{command} 8000 --noreload", **environment) as server:
        assert server.get("/hello/you/").status == 200


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("newest", [False, True], ids=["oldest", "newest"])
@pytest.mark.parametrize("django_version", choices("django_version"))
def test_service(
    bake: Bake, tmp_path: Path, django_version: str, newest: bool, resolution: str
) -> None:
    baked = bake(**ANSWERS, django_version=django_version, deploy="none", ci="none")
    service = baked.copy(tmp_path / "service")
    python = interpreters.find(MINIMUM[django_version], newest)
    prove(service, python, resolution)
    # Nothing but this tries what mypy says to a developer on another system.
    for platform in ("darwin", "win32"):
        service.run(f"uv run --no-sync mypy --platform {platform} .")


@pytest.mark.parametrize("newest", [False, True], ids=["oldest", "newest"])
def test_onloop_with_the_lowest(tmp_path: Path, newest: bool) -> None:
    """With the lowest that it allows itself; the service has its own tools."""
    file = tmp_path / "lowest.txt"
    compiled = [interpreters.UV, "pip", "compile", "--resolution", "lowest-direct"]
    options = ["--no-deps", "--extra", "test", "--quiet", "--output-file", str(file)]
    succeed([*compiled, *options, ONLOOP / "pyproject.toml"], TEMPLATE, inherited())
    python = interpreters.find("3.11", newest)
    run = [interpreters.UV, "run", "--isolated", "--python", python]
    tests = ["pytest", "-n2", "tests/onloop", "--basetemp", str(tmp_path / "pytest")]
    command = [*run, "--with-requirements", str(file), *tests]
    done = finish(command, TEMPLATE, inherited(), timeout=1800)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d+ passed in", done.stdout)


def test_onloop_is_built_by_the_lowest_backend(tmp_path: Path) -> None:
    [backend] = [r for r in requirements(ONLOOP) if r.name == "uv_build"]
    (tmp_path / "bounds.txt").write_text(f"uv_build=={lowest(backend)}.0\n")
    # Or uv would build with itself.
    build = [interpreters.UV, "build", "--wheel", "--force-pep517"]
    bounds = ["--build-constraints", "bounds.txt", "--out-dir", "."]
    succeed([*build, *bounds, ONLOOP], tmp_path, inherited())
    assert [*tmp_path.glob("*.whl")]
