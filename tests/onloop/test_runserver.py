"""runserver serves ASGI_APPLICATION with uvicorn."""

import functools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from django.core.handlers.asgi import ASGIHandler
from django.core.management import CommandError, call_command
from django.db import connection
from onloop.management.commands.runserver import checked_application
from pytest_django import Settings

from .server import Server

MIDDLEWARES = "tests.onloop.middlewares"
ROOT = Path(__file__).parents[2]
APPLICATION, STOCK = object(), ASGIHandler()


@pytest.fixture
def configured(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments for uvicorn, which is not run."""
    settings.ASGI_APPLICATION = "config.asgi.application"
    options: dict[str, Any] = {}

    def run(application: str, **kwargs: Any) -> None:
        options.update(kwargs, application=application)

    monkeypatch.setattr(uvicorn, "run", run)
    return options


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run(*arguments: str, skip_checks: bool = False) -> tuple[str, str]:
    out, err = StringIO(), StringIO()
    options = {"stdout": out, "stderr": err, "skip_checks": skip_checks}
    call_command("runserver", *arguments, **options)
    return out.getvalue(), err.getvalue()


# The command closes the connections that it used.
pytestmark = pytest.mark.django_db(transaction=True)


def test_uvicorn_serves_the_application_of_the_settings(
    configured: dict[str, Any], free_port: int
) -> None:
    out, err = run(str(free_port))
    application = "onloop.management.commands.runserver:checked_application"
    assert (configured["application"], configured["factory"]) == (application, True)
    assert (configured["host"], configured["port"]) == ("127.0.0.1", free_port)
    assert configured["server_header"] is False
    assert f"Serving on http://127.0.0.1:{free_port}/ (quit with CONTROL-C)\n" in out
    assert err == ""
    configured.clear()
    run(str(free_port), skip_checks=True)
    assert configured["application"] == "config.asgi:application"
    assert configured["factory"] is False


def test_changes_of_code_templates_and_dotenv_reload(
    configured: dict[str, Any], settings: Settings, free_port: int, tmp_path: Path
) -> None:
    run(str(free_port))
    assert configured["reload"] is True
    assert configured["reload_dirs"] == [os.getcwd()]
    assert configured["reload_includes"] == ["*.html", ".env"]
    settings.BASE_DIR = tmp_path
    run(str(free_port))
    assert configured["reload_dirs"] == [str(tmp_path)]


def test_nothing_reloads_without_the_reloader(
    configured: dict[str, Any], free_port: int
) -> None:
    run(str(free_port), "--noreload")
    assert configured["reload"] is False
    # uvicorn would warn that it ignores them.
    assert not {"reload_dirs", "reload_includes"} & configured.keys()


def test_logging_of_the_settings_holds_for_uvicorn(
    configured: dict[str, Any], settings: Settings, free_port: int
) -> None:
    run(str(free_port))
    assert configured["log_config"] is None
    settings.LOGGING = {}
    run(str(free_port))
    assert configured["log_config"] is uvicorn.config.LOGGING_CONFIG


def test_ipv6(configured: dict[str, Any], free_port: int) -> None:
    out, _ = run("--ipv6", str(free_port))
    assert configured["host"] == "::1"
    assert f"Serving on http://[::1]:{free_port}/" in out


def test_middlewares_that_stay_on_the_loop_are_counted(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.ASGI_APPLICATION = f"{__name__}.APPLICATION"
    assert checked_application() is APPLICATION
    stay = "7 of 7 middlewares stay on the event loop.\n"
    assert capsys.readouterr().out.endswith(stay)
    settings.MIDDLEWARE = [f"{MIDDLEWARES}.Mixed", *settings.MIDDLEWARE]
    checked_application()
    out, err = capsys.readouterr()
    assert out == (
        "7 of 8 middlewares stay on the event loop; `manage.py middleware` shows the "
        "others.\n"
    )
    assert "(onloop.W002)" in err


def test_djangos_own_handler_is_named(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.ASGI_APPLICATION = f"{__name__}.STOCK"
    checked_application()
    named = "ASGI_APPLICATION is Django's own handler, not onloop's.\n"
    assert capsys.readouterr().out.endswith(named)


def test_mistake_ends_the_process_with_its_sentence(settings: Settings) -> None:
    settings.ASGI_APPLICATION = f"{__name__}.APPLICATION"
    settings.MIDDLEWARE = [f"{MIDDLEWARES}.Nowhere"]
    with pytest.raises(SystemExit, match=r"\(onloop\.E001\)"):
        checked_application()


@pytest.mark.parametrize("application", [None, "", "application"])
def test_application_that_is_not_set_is_asked_for(
    settings: Settings, application: str | None
) -> None:
    if application is not None:
        settings.ASGI_APPLICATION = application
    with pytest.raises(CommandError, match="what ASGI_APPLICATION names: set it to"):
        run()


def test_missing_uvicorn_is_asked_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(CommandError, match="runserver needs uvicorn"):
        run()


def test_port_in_use_is_refused(configured: dict[str, Any]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(CommandError, match=f"^Port {port} on 127.0.0.1 is in use"):
            run(str(port))
    assert configured == {}


def test_address_of_another_machine_is_refused(configured: dict[str, Any]) -> None:
    with pytest.raises(CommandError, match=r"Cannot listen on 192\.0\.2\.1:8000: "):
        run("192.0.2.1:8000")


def test_database_is_left_when_the_migrations_are_checked(
    configured: dict[str, Any], free_port: int
) -> None:
    connection.ensure_connection()
    run(str(free_port))
    assert connection.connection is None


def test_unreachable_database_is_a_warning(
    configured: dict[str, Any],
    free_port: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    connection.close()
    nowhere = str(tmp_path / "nowhere" / "db.sqlite3")
    monkeypatch.setitem(connection.settings_dict, "NAME", nowhere)
    _, err = run(str(free_port))
    assert err.startswith("No database: unable to open database file")
    assert configured["port"] == free_port


SETTINGS = """
from pathlib import Path

from tests.onloop.settings import *

BASE_DIR = Path(__file__).parent
ASGI_APPLICATION = "live_asgi.serve"
# Without LOGGING, uvicorn's lines have uvicorn's own format.
LOGGING = {}
"""
ASGI = """
from onloop.asgi import get_asgi_application

serve = get_asgi_application()
"""


@pytest.fixture
def live(tmp_path: Path, free_port: int) -> Iterator[Server]:
    """A project under runserver."""
    (tmp_path / "live_settings.py").write_text(SETTINGS)
    (tmp_path / "live_asgi.py").write_text(ASGI)
    log = tmp_path / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            (sys.executable, "-m", "django", "runserver", str(free_port)),
            cwd=tmp_path,
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "live_settings",
                "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), *sys.path]),
                "PYTHONUNBUFFERED": "1",
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # The reloader's process has a child process that serves.
            start_new_session=True,
        )
    server = Server(process, log)
    server.port = free_port
    try:
        yield server
        process.terminate()
        process.wait(30)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def accepts(server: Server) -> bool:
    assert server.process.poll() is None, server.log.read_text()
    with suppress(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=10).close()
        return True
    return False


def test_running_server_answers_and_reloads_what_changed(
    live: Server, tmp_path: Path
) -> None:
    live.wait_for(lambda: accepts(live))
    answer = live.request("/", headers={"Host": "localhost"})
    assert answer == (200, '{"hello": "world"}')
    for name in (".env", "page.html", "live_asgi.py"):
        with (tmp_path / name).open("a") as file:
            file.write("\n")
        line = f"WatchFiles detected changes in '{name}'. Reloading..."
        live.wait_for(functools.partial(logged, live, line))


def test_mistakes_are_reported_when_they_are_saved(
    live: Server, tmp_path: Path
) -> None:
    live.wait_for(lambda: logged(live, "7 of 7 middlewares stay on the event loop."))
    added = f'\nMIDDLEWARE = [*MIDDLEWARE, "{MIDDLEWARES}.Mixed"]\n'
    (tmp_path / "live_settings.py").write_text(SETTINGS + added)
    live.wait_for(lambda: logged(live, "(onloop.W002)"))
    added = "\nfrom django.core.exceptions import ImproperlyConfigured as Refused"
    added += '\nraise Refused("LEVEL is refused")\n'
    (tmp_path / "live_settings.py").write_text(SETTINGS + added)
    waits = "Nothing is served until a file changes."
    live.wait_for(lambda: logged(live, f"\nLEVEL is refused\n{waits}\n"))
    assert not logged(live, "Traceback")
    (tmp_path / "live_urls.py").write_text("x = (")
    urls = 'ROOT_URLCONF = "live_urls"\n'
    (tmp_path / "live_settings.py").write_text(SETTINGS + urls)
    live.wait_for(lambda: logged(live, "SyntaxError: '(' was never closed"))
    (tmp_path / "live_urls.py").write_text("urlpatterns = []")
    live.wait_for(lambda: accepts(live))
    live.wait_for(lambda: live.request("/", headers={"Host": "localhost"})[0] == 404)


def logged(server: Server, line: str) -> bool:
    return line in server.log.read_text()
