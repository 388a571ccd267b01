"""A live server, for tests that need a socket."""

import json
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any


class Server:
    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process = process
        self.log = log
        self.port = 0

    def connect(self, path: str) -> socket.socket:
        """Connect, send the request and read nothing."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        return client

    def request(
        self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        """The status and the body."""
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            connection.request(method, path, headers=headers or {})
            response = connection.getresponse()
            return response.status, response.read().decode()

    def lines(self, **fields: object) -> list[dict[str, Any]]:
        """The complete JSON lines that have these fields."""
        *whole, _ = self.log.read_text(encoding="utf-8").split("\n")
        lines = [json.loads(line) for line in whole if line.startswith("{")]
        return [line for line in lines if fields.items() <= line.items()]

    def listens(self) -> bool:
        text = self.log.read_text(encoding="utf-8")
        assert self.process.poll() is None, text
        if found := re.search(r"running on http://127\.0\.0\.1:(\d+)", text):
            self.port = int(found[1])
        return self.port != 0

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text(encoding="utf-8")
            time.sleep(0.01)


@contextmanager
def serve(
    command: Sequence[str | Path],
    log: Path,
    cwd: Path,
    env: Mapping[str, str],
    output: int | None = None,
) -> Iterator[Server]:
    """Run a uvicorn command on a free port, and end it with SIGTERM.

    If ``output`` is given, the caller copies what it receives to the log.
    """
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--port", "0"],
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output or file,
            stderr=output or file,
        )
    server = Server(process, log)
    try:
        server.wait_for(server.listens)
        yield server
        process.terminate()
        process.wait(30)
    finally:
        process.kill()
        process.wait()
