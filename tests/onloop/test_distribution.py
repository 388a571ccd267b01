"""The release: built, installed into a project that startproject made, and served."""

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from email import message_from_string
from pathlib import Path

import django
import pytest
from uv import find_uv_bin

from .server import serve

LIBRARY = Path(__file__).parents[2] / "{{cookiecutter.project_slug}}/vendor/onloop"
MODULES = {
    path.relative_to(LIBRARY / "src").as_posix()
    for path in (LIBRARY / "src").rglob("*.*")
    if path.suffix in {".py", ".html", ".css", ".js", ".svg"}
}
pytestmark = pytest.mark.xdist_group("distribution")


def environment() -> dict[str, str]:
    """The environment without variables that refer to this virtual environment."""
    mine = {"VIRTUAL_ENV", "DJANGO_SETTINGS_MODULE"}
    return {
        name: value
        for name, value in os.environ.items()
        if name not in mine and not name.startswith("PYTHON")
    }


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    run(find_uv_bin(), "build", LIBRARY, "--out-dir", folder, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    [path] = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def sdist(built: Path) -> Path:
    [path] = built.glob("*.tar.gz")
    return path


def test_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if not name.endswith("/")}
    content = {name for name in files if ".dist-info/" not in name}
    assert content == MODULES | {"onloop/py.typed"}
    assert "onloop/panel/panel.js" in content
    assert {name.partition(".dist-info/")[2] for name in files - content} == {
        *("METADATA", "RECORD", "WHEEL"),
        *("entry_points.txt", "licenses/LICENSE"),
    }


def test_wheel_is_pure_and_named_django_onloop(wheel: Path) -> None:
    assert re.fullmatch(r"django_onloop-\d+\.\d+\.\d+-py3-none-any\.whl", wheel.name)


def test_wheel_announces_the_pytest_plugin(wheel: Path) -> None:
    parser = ConfigParser()
    with zipfile.ZipFile(wheel) as archive:
        [name] = [n for n in archive.namelist() if n.endswith("entry_points.txt")]
        parser.read_string(archive.read(name).decode())
    assert dict(parser["pytest11"]) == {"onloop": "onloop.pytest_plugin"}


def test_metadata_says_what_it_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [n for n in archive.namelist() if n.endswith("METADATA")]
        metadata = message_from_string(archive.read(name).decode())
    assert metadata["Name"] == "django-onloop"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    needed = {
        re.split(r"[^\w-]", each)[0] for each in metadata.get_all("Requires-Dist", [])
    }
    assert needed == {"asgiref", "django", "structlog", "blockbuster", "pytest"}
    assert metadata.get_all("Provides-Extra") == ["test"]


def test_sdist_holds_what_the_wheel_is_built_from(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        files = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert {f"src/{name}" for name in MODULES} <= files
    needed = {"pyproject.toml", "README.md", "LICENSE", "src/onloop/py.typed"}
    assert needed <= files


def test_typed_for_its_users(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("onloop/py.typed") == b""


# In a project.

URLS = """
from django.http import HttpResponse
from django.urls import path

async def view(request):
    return HttpResponse("served")

urlpatterns = [path("", view)]
"""
# Wrapped around the application, so that Django does not see the request for counts.
COUNTED = """
import json, threading
from asgiref.sync import AsyncToSync, SyncToAsync
from mysite.asgi import application as django_application

counts = {"hops": 0, "threads": 0}

def count(owner, name, what):
    call = getattr(owner, name)
    def counted(*args, **kwargs):
        counts[what] += 1
        return call(*args, **kwargs)
    setattr(owner, name, counted)

count(SyncToAsync, "__call__", "hops")
count(AsyncToSync, "__call__", "hops")
count(threading.Thread, "start", "threads")

async def application(scope, receive, send):
    if scope.get("path") != "/counts/":
        return await django_application(scope, receive, send)
    body = json.dumps(counts).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""
STOCK = "from django.core.asgi import get_asgi_application\n"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """The interpreter of a new environment, with the Django of this test run."""
    folder = tmp_path_factory.mktemp("venv")
    uv, python = find_uv_bin(), folder / "bin" / "python"
    run(uv, "venv", "--quiet", "--python", sys.executable, folder, cwd=folder)
    packages: list[str | Path] = [f"django=={django.get_version()}", "uvicorn", wheel]
    run(uv, "pip", "install", "--quiet", "--python", python, *packages, cwd=folder)
    return python


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, python: Path) -> Path:
    folder = tmp_path_factory.mktemp("project")
    django_admin = python.with_name("django-admin")
    run(django_admin, "startproject", "mysite", folder, cwd=folder)
    (folder / "mysite" / "urls.py").write_text(URLS, encoding="utf-8")
    (folder / "counted.py").write_text(COUNTED, encoding="utf-8")
    return folder


@pytest.fixture
def onloop_project(project: Path) -> Iterator[Path]:
    """The same project with one line changed."""
    asgi = project / "mysite" / "asgi.py"
    text = asgi.read_text(encoding="utf-8")
    assert text.count(STOCK) == 1
    changed = text.replace(STOCK, STOCK.replace("django.core", "onloop"))
    asgi.write_text(changed, encoding="utf-8")
    yield project
    asgi.write_text(text, encoding="utf-8")


def count(python: Path, project: Path, requests: int) -> Mapping[str, int]:
    """Count the thread hops and started threads of a number of requests."""
    command: list[str | Path] = [
        python,
        "-W",
        "error",
        "-m",
        "uvicorn",
        "counted:application",
    ]
    with serve(command, project / "log", project, environment()) as server:
        before = json.loads(server.request("/counts/")[1])
        for _ in range(requests):
            assert server.request("/") == (200, "served")
        after = json.loads(server.request("/counts/")[1])
    return {name: after[name] - before[name] for name in before}


def test_environment_has_only_what_a_user_installs(python: Path) -> None:
    code = "import importlib.util; print(importlib.util.find_spec('onloop').origin)"
    origin = run(python, "-c", code, cwd=python.parent).strip()
    assert Path(origin).is_relative_to(python.parents[1])
    installed = run(
        python, "-c", "import django; print(django.__version__)", cwd=python.parent
    )
    assert installed.strip() == django.get_version()


def test_one_line_takes_an_async_view_off_the_threads(
    python: Path, onloop_project: Path
) -> None:
    assert count(python, onloop_project, 3) == {"hops": 0, "threads": 0}


def test_without_that_line_each_request_hops(python: Path, project: Path) -> None:
    one = count(python, project, 1)
    assert one["hops"] > 10
    assert one["threads"] > 0


def test_app_can_be_installed_and_checked(python: Path, onloop_project: Path) -> None:
    settings = onloop_project / "mysite" / "settings.py"
    text = settings.read_text(encoding="utf-8")
    changed = text.replace("INSTALLED_APPS = [", 'INSTALLED_APPS = [\n    "onloop",')
    assert changed != text
    settings.write_text(changed, encoding="utf-8")
    output = run(python, "manage.py", "check", cwd=onloop_project)
    assert "no issues" in output
    assert count(python, onloop_project, 1) == {"hops": 0, "threads": 0}
    settings.write_text(text, encoding="utf-8")
