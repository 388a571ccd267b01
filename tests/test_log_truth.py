"""The log tells the truth under load, fuzz and a reader that stalls.

FIGURES=1 runs the full figures of the README, which take minutes.
"""

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from tests.conftest import Bake
from tests.prompts import choices
from tests.service import PARSERS, Server, Service, free_port

FULL = bool(os.environ.get("FIGURES"))
PRODUCTION = {"SECRET_KEY": "x" * 50, "ALLOWED_HOSTS": "127.0.0.1", "DEBUG": ""}
COMMAND = "uv run uvicorn config.asgi:application --port 8000"
pytestmark = pytest.mark.xdist_group("log truth")


@pytest.fixture(scope="module", params=choices("django_version"))
def service(request: pytest.FixtureRequest, bake: Bake) -> Service:
    service = bake(django_version=request.param, admin="false", log_format="json")
    service.run("uv sync")
    return service


class Client:
    """A kept connection that counts the answers it has read to the end."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answered = 0
        self.slowest = 0.0

    def run(self, seconds: float, pause: float = 0) -> None:
        request = b"GET /hello/you/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        end = time.monotonic() + seconds
        with contextlib.suppress(OSError), self.connect() as connection:
            while time.monotonic() < end:
                start = time.perf_counter()
                connection.sendall(request)
                if not read_answer(connection):
                    return
                self.slowest = max(self.slowest, time.perf_counter() - start)
                self.answered += 1
                time.sleep(pause)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)


def read_answer(connection: socket.socket) -> bytes:
    """Headers and body; nothing when the connection ends before."""
    answer = b""
    while True:
        head, end, body = answer.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        if end and len(body) >= int(length[1] if length else 0):
            return answer
        if not (more := connection.recv(65536)):
            return b""
        answer += more


def timing_lines(server: Server) -> int:
    lines = server.lines("json")
    return sum(line["logger"] == "serving.timing" for line in lines)


@pytest.mark.parametrize("turn", range(20 if FULL else 1))
def test_sigterm_amid_load_loses_no_line(service: Service, turn: int) -> None:
    with service.serve(COMMAND, **PRODUCTION) as server:
        clients = [Client(server.port) for _ in range(4)]
        threads = [
            threading.Thread(target=client.run, args=(60,)) for client in clients
        ]
        for thread in threads:
            thread.start()
        enough = 10_000 if FULL else 1000
        server.wait_for(lambda: sum(c.answered for c in clients) > enough)
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
    # A request may have been answered when its client no longer listened.
    answered = sum(client.answered for client in clients)
    assert answered <= timing_lines(server) <= answered + len(clients)


def test_reader_that_stalls_holds_up_no_request(service: Service) -> None:
    port = free_port()
    process = subprocess.Popen(
        [
            *(service.path / ".venv" / "bin" / "python", "-m", "uvicorn"),
            *("config.asgi:application", "--port", str(port)),
        ],
        cwd=service.path,
        env=service.environment | PRODUCTION,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    log = bytearray()
    try:
        assert process.stderr is not None
        while b"Uvicorn running" not in log:
            log += os.read(process.stderr.fileno(), 65536)
        warm_up, usual = Client(port), Client(port)
        warm_up.run(1)
        usual.run(2, pause=0.005)
        stalled = Client(port)
        # Nobody reads: the pipe is full after some hundred lines.
        stalled.run(5, pause=0.005)
        process.send_signal(signal.SIGTERM)
        while more := os.read(process.stderr.fileno(), 65536):
            log += more
    finally:
        process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()
    assert stalled.answered > 300
    # Far below the 5 s of the stall: what a busy machine alone may cost.
    assert stalled.slowest < usual.slowest + 0.5
    print(f"slowest: usual {usual.slowest:.4f} s, stalled {stalled.slowest:.4f} s")
    lines = [PARSERS["json"](line) for line in log.decode().splitlines()]
    written = sum(line["logger"] == "serving.timing" for line in lines)
    assert written == warm_up.answered + usual.answered + stalled.answered


def fuzz(number: int) -> Iterator[bytes]:
    """Requests with whatever a client may put into path, headers and method."""
    chance = random.Random(number)
    nasty = [
        *(
            "%0a",
            "%0d%0a",
            "%1b[31m",
            "%09",
            "%00",
            "%c2%85",
            "%e2%80%a8",
            "%22",
            "%5c",
        ),
        *(
            "status=200",
            "%20status=200",
            "{}",
            "%7b%22a%22:1%7d",
            "\u00e9",
            "%ff",
            "=",
            "'",
        ),
    ]
    for _ in range(number):
        path = "".join(chance.choices(nasty, k=chance.randrange(1, 12)))
        method = chance.choice(["GET", "POST", "PUT", "X-Y", "GE%T"])
        value = "".join(chr(chance.randrange(0x20, 0xFF)) for _ in range(20))
        headers = (
            f"X-Request-ID: {value}\r\nUser-Agent: {value}\r\nContent-Length: 0\r\n"
        )
        text = f"{method} /{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}\r\n"
        yield text.encode("latin1")


@pytest.mark.parametrize("log_format", choices("log_format"))
def test_fuzzed_requests_leave_one_parseable_line_each(
    service: Service, log_format: str
) -> None:
    answered = 0
    with service.serve(COMMAND, **PRODUCTION, LOG_FORMAT=log_format) as server:
        connection = Client(server.port).connect()
        for request in fuzz(10_000 if FULL else 500):
            connection.sendall(request)
            answer = read_answer(connection)
            if b"x-request-id" not in answer.lower():
                # uvicorn itself refused it.
                connection.close()
                connection = Client(server.port).connect()
                continue
            answered += 1
        connection.close()
    lines = server.lines(log_format)
    timing = [line for line in lines if line["logger"] == "serving.timing"]
    assert len(timing) == answered > 100
    for line in timing:
        assert line["outcome"] == "completed"
        assert len(str(line["request_id"])) == 32
        assert set(line) <= {
            *("timestamp", "level", "logger", "message", "service", "request_id"),
            *("method", "path", "route", "status", "duration", "outcome"),
        }
