"""A live server for what a test client cannot show."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
OUTCOMES = (
    *("-m", "uvicorn", "tests.outcomes:application"),
    *("--timeout-graceful-shutdown", "1"),
)


@dataclass
class Server:
    port: int
    log: Path
    out: Path
    process: subprocess.Popen[bytes]

    @contextmanager
    def open(
        self, path: str, method: str = "GET", request_id: str = "", **headers: str
    ) -> Iterator[HTTPResponse]:
        """Leaves when the block ends, whatever is still to come."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request(method, path, headers={"X-Request-ID": request_id} | headers)
        with closing(connection), connection.getresponse() as response:
            yield response

    def get(self, path: str, **arguments: str) -> HTTPResponse:
        with self.open(path, **arguments) as response:
            response.read()
        return response

    def lines(self) -> list[str]:
        """Those that are whole."""
        *whole, _ = self.log.read_text(encoding="utf-8").split("\n")
        return whole

    def timing(self, **fields: object) -> dict[str, Any]:
        """The one timing line with these fields; it may be yet to come."""
        found: list[dict[str, Any]] = []

        def written() -> bool:
            found[:] = self.parsed(logger="serving.timing", **fields)
            return bool(found)

        self.wait_for(written)
        [line] = found
        return line

    def parsed(self, **fields: object) -> list[dict[str, Any]]:
        """The lines with these fields, of a log in JSON."""
        lines = [json.loads(line) for line in self.lines()]
        return [line for line in lines if fields.items() <= line.items()]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Up to a minute, for a busy machine."""
        deadline = time.monotonic() + 60
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(
                    "It did not happen within a minute:\n" + "\n".join(self.lines())
                )
            time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


Serve = Callable[..., AbstractContextManager[Server]]


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """Start the service in a process of its own; keywords are its environment."""

    @contextmanager
    def serve(*command: str, port: int = 0, **environment: str) -> Iterator[Server]:
        port = port or free_port()
        command = command or ("-m", "uvicorn", "config.asgi:application", "--port")
        folder = tmp_path_factory.mktemp("server")
        log, out = folder / "log", folder / "out"
        with log.open("wb") as stderr, out.open("wb") as stdout:
            process = subprocess.Popen(
                [sys.executable, "-W", "error", *command, str(port)],
                cwd=ROOT,
                env=os.environ
                | {
                    "ALLOWED_HOSTS": "127.0.0.1",
                    "DJANGO_SETTINGS_MODULE": "tests.settings",
                }
                | environment,
                stdout=stdout,
                stderr=stderr,
            )
        server = Server(port, log, out, process)

        def listening() -> bool:
            if process.poll() is not None:
                return True
            with socket.socket() as client:
                return client.connect_ex(("127.0.0.1", port)) == 0

        try:
            server.wait_for(listening)
            yield server
        finally:
            process.terminate()
            process.wait(60)

    return serve


@pytest.fixture(scope="session")
def live(serve: Serve) -> Iterator[Server]:
    """One server for all tests that need nothing special; it logs in JSON."""
    with serve(*OUTCOMES, "--port", LOG_FORMAT="json") as server:
        yield server
