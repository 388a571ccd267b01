"""A service needs nothing that only POSIX has: imitated, for there is no Windows here.

The workflow runs a generated service on the real one.
"""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.template.conftest import Bake
from tests.template.prompts import TEXTS
from tests.template.service import Service, finish

WITHOUT_POSIX = {
    "PYTHONPATH": str(Path(__file__).with_name("windows")),
    # As there, files are not UTF-8 unless open() says so.
    "LC_ALL": "C",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONUTF8": "0",
}


@pytest.fixture
def folder() -> Iterator[Path]:
    # With LC_ALL=C, Linux takes the names of files for ASCII. Windows does not.
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture
def service(bake: Bake, installed: Service, folder: Path) -> Service:
    """With a name that is not ASCII."""
    baked = bake(**TEXTS, deploy="none", ci="none")
    return baked.copy_in_environment(folder / "service", installed)


def test_service_passes_its_tests_without_posix(service: Service, folder: Path) -> None:
    # Without pwd, pytest could not name its own folder after the user; the script
    # `pytest` names the folder of the environment, which is not ASCII.
    command = f"uv run python -m pytest --basetemp {folder}/pytest"
    output = service.run(command, **WITHOUT_POSIX)
    assert re.search(r"\d+ passed in", output)
    assert not re.search(r"\d+ (skipped|deselected|xfailed)", output)


def test_service_is_served_without_posix(service: Service) -> None:
    service.run("uv run manage.py migrate", **WITHOUT_POSIX)
    command, *_ = service.readme_commands()
    with service.serve(f"{command} 8000", **WITHOUT_POSIX) as server:
        assert server.get("/hello/you/").status == 200
        assert TEXTS["project_name"].split()[-1] in server.get("/").body
        server.wait_for(lambda: "Request took" in server.log.read_text())


def test_nothing_of_posix_is_left(service: Service) -> None:
    for name in ("fcntl", "uvloop"):
        command = ["uv", "run", "python", "-c", f"import {name}"]
        done = finish(command, service.path, service.environment | WITHOUT_POSIX)
        assert "ModuleNotFoundError" in done.stdout
