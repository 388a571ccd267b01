"""The log of a live server, read from a pipe until the server has ended."""

import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from .server import Server, serve

ROOT = Path(__file__).parents[2]
Start = Callable[..., AbstractContextManager[Server]]
pytestmark = pytest.mark.xdist_group("live log")


class SlowReader(threading.Thread):
    """Copies a pipe to a file."""

    def __init__(self, log: Path) -> None:
        super().__init__(daemon=True)
        self.reading, self.writing = os.pipe()
        self.log = log

    def run(self) -> None:
        with self.log.open("wb", buffering=0) as file:
            while part := os.read(self.reading, 65536):
                file.write(part)
                time.sleep(0.002)


@pytest.fixture
def start(tmp_path: Path) -> Start:
    @contextmanager
    def start(*options: str) -> Iterator[Server]:
        settings = {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "line": {
                    "()": "onloop.logging.Formatter",
                    "log_format": "json",
                    "service": "x",
                }
            },
            "handlers": {
                "stderr": {"()": "onloop.logging.QueueHandler", "formatter": "line"}
            },
            "root": {"level": "INFO", "handlers": ["stderr"]},
        }
        config = tmp_path / "logging.json"
        config.write_text(json.dumps(settings))
        command = [
            *(sys.executable, "-m", "uvicorn", "tests.onloop.log_asgi:application"),
            *("--no-access-log", "--log-config", str(config), *options),
        ]
        reader = SlowReader(tmp_path / "log")
        reader.log.touch()
        reader.start()
        try:
            with serve(
                command, reader.log, ROOT, os.environ, output=reader.writing
            ) as server:
                os.close(reader.writing)
                yield server
        finally:
            reader.join(30)

    return start


def test_log_of_one_process(start: Start) -> None:
    with start() as server:
        server.request("/children/")
        server.wait_for(lambda: bool(server.lines(message="children ended")))
        # Reading the session would need a query, and so a thread.
        server.request("/lazy/", headers={"Cookie": "sessionid=0123456789abcdef"})
        # The executor's threads are busy for longer than the test may take.
        server.request("/fill-executor/")
    kinds = Counter(line["kind"] for line in server.lines(message="in a child"))
    assert kinds == dict.fromkeys(("os.fork", "fork", "forkserver", "pool"), 1)
    assert len(server.lines(message="in the parent")) == 1
    [line] = server.lines(message="lazy")
    assert line["path"] == "/lazy/"
    assert line["user"] == (
        "<SimpleLazyObject that cannot be shown: SynchronousOnlyOperation>"
    )
    assert_every_line_is_json(server)


@pytest.mark.parametrize("workers", [1, 2])
def test_server_that_is_interrupted_while_it_stops_writes_all(
    start: Start, workers: int
) -> None:
    with start("--workers", str(workers)) as server:
        started = "Application startup complete."
        server.wait_for(lambda: len(server.lines(message=started)) == workers)
        with server.connect("/lines-at-the-end/8000/"):
            server.wait_for(lambda: bool(server.lines(message="waits")))
            serving = server.lines(message="waits")[0]["pid"]
            server.process.terminate()
            server.wait_for(lambda: bool(server.lines(message="line")))
            os.kill(serving, signal.SIGINT)
            server.process.wait(30)
    numbers = [line["number"] for line in server.lines(message="line")]
    assert numbers == list(range(8000))
    assert server.lines(message=f"Finished server process [{serving}]")
    assert_every_line_is_json(server)


def assert_every_line_is_json(server: Server) -> None:
    *lines, last = server.log.read_text(encoding="utf-8").split("\n")
    assert last == ""
    for line in lines:
        entry: Any = json.loads(line)
        assert entry["service"] == "x"
