"""The log stays correct under load, with fuzzed requests and with a stalled reader.

FIGURES=1 runs the tests at full size, which takes minutes.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.template.conftest import Bake
from tests.template.prompts import choices
from tests.template.service import PARSERS, Server, Service, free_port

FULL = bool(os.environ.get("FIGURES"))
PRODUCTION = {"SECRET_KEY": "abcdefghij" * 5, "ALLOWED_HOSTS": "127.0.0.1", "DEBUG": ""}
COMMAND = "uv run uvicorn config.asgi:application --port 8000"
pytestmark = pytest.mark.xdist_group("log")


@pytest.fixture(scope="module", params=choices("django_version"))
def service(request: pytest.FixtureRequest, ready: Bake) -> Service:
    return ready(django_version=request.param, admin="false", log_format="json")


# Where nothing depends on Django's version.
newest = pytest.mark.parametrize(
    "service", choices("django_version")[-1:], indirect=True
)


@pytest.fixture
def failing(service: Service, tmp_path: Path) -> Service:
    """A service with a page that fails with a message of the client's choice."""
    copy = service.copy_in_environment(tmp_path / "service")
    shutil.copy(Path(__file__).parent / "project" / "outcomes.py", copy.path)
    return copy


class PersistentClient:
    """A persistent connection that counts the answers that it has read completely."""

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
    """Headers and body; nothing if the connection ends first."""
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
    # runserver also writes some lines for people.
    lines = [
        line for line in server.log.read_text().splitlines() if line.startswith("{")
    ]
    return sum(PARSERS["json"](line)["logger"] == "serving.timing" for line in lines)


@pytest.mark.parametrize("turn", range(20 if FULL else 1))
def test_sigterm_amid_load_loses_no_line(service: Service, turn: int) -> None:
    with service.serve(COMMAND, **PRODUCTION) as server:
        clients = [PersistentClient(server.port) for _ in range(4)]
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


def test_server_that_is_interrupted_has_written_every_line(service: Service) -> None:
    with service.serve(COMMAND, **PRODUCTION) as server:
        for number in range(50):
            server.get(f"/nowhere/{number}/")
        server.process.send_signal(signal.SIGINT)
        server.process.wait(15)
    assert timing_lines(server) == 50
    # uvicorn's last line.
    assert "Finished server process" in server.lines("json")[-1]["message"]


@newest
def test_each_of_several_workers_writes_whole_lines(service: Service) -> None:
    more = "--workers 2 --log-config config/logging.json"
    with service.serve(f"{COMMAND} {more}", **PRODUCTION) as server:
        started = "Application startup complete."
        server.wait_for(lambda: server.log.read_text().count(started) == 2)
        for number in range(100):
            server.get(f"/hello/{number}/")
    assert timing_lines(server) == 100
    ended = [line["message"] for line in server.lines("json")]
    assert ended.count("Application shutdown complete.") == 2


@newest
def test_reload_in_development_loses_no_line(service: Service) -> None:
    environment = PRODUCTION | {"DEBUG": "true"}
    with service.serve("uv run manage.py runserver 8000", **environment) as server:
        started = "Application startup complete."
        server.wait_for(lambda: started in server.log.read_text())
        before, after = PersistentClient(server.port), PersistentClient(server.port)
        thread = threading.Thread(target=before.run, args=(60,))
        thread.start()
        server.wait_for(lambda: before.answered > 100)
        (service.path / "home" / "views.py").touch()
        # The server closes its connection.
        thread.join()
        server.wait_for(lambda: server.log.read_text().count(started) == 2)
        after.run(0.2)
    answered = before.answered + after.answered
    assert after.answered
    # A request may have been answered when its client no longer listened.
    assert answered <= timing_lines(server) <= answered + 1


@newest
def test_stalled_reader_blocks_no_request(service: Service) -> None:
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
        warm_up, usual, stalled = (PersistentClient(port) for _ in range(3))
        warm_up.run(1)
        usual.run(2 if FULL else 1, pause=0.005)
        # Nobody reads: the pipe is full after a few hundred lines.
        stalled.run(5 if FULL else 2, pause=0.005)
        memory = resident_mib(process.pid)
        flood = [PersistentClient(port) for _ in range(4)]
        threads = [
            threading.Thread(target=client.run, args=(10 if FULL else 1,))
            for client in flood
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        growth = resident_mib(process.pid) - memory
        process.send_signal(signal.SIGTERM)
        while more := os.read(process.stderr.fileno(), 65536):
            log += more
    finally:
        process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()
    assert stalled.answered > 100
    # Far below the stall, but more than a busy machine alone may cost.
    assert stalled.slowest < usual.slowest + (0.05 if FULL else 0.5)
    lines = [PARSERS["json"](line) for line in log.decode().splitlines()]
    written = sum(line["logger"] == "serving.timing" for line in lines)
    dropped = sum(line.get("dropped", 0) for line in lines)
    answered = sum(c.answered for c in (warm_up, usual, stalled, *flood))
    assert written + dropped == answered
    # At most 10,000 lines wait.
    assert dropped > 0 or not FULL
    assert growth < 64
    print(
        f"slowest: usual {usual.slowest:.4f} s, stalled {stalled.slowest:.4f} s; "
        f"{answered} answered, {dropped} dropped, {growth:.1f} MiB more"
    )


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    [kib] = re.findall(r"VmRSS:\s+(\d+)", status)
    return int(kib) / 1024


def fuzz(number: int) -> Iterator[bytes]:
    """Random path, query, headers and method, as far as a client may choose them;
    some views put them into the message of an exception.
    """
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
        path = chance.choice([path, f"error/?message={path}", f"?{path}"])
        text = f"{method} /{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}\r\n"
        yield text.encode("latin1")


@pytest.mark.parametrize("log_format", choices("log_format"))
def test_fuzzed_requests_leave_one_parseable_line_each(
    failing: Service, log_format: str
) -> None:
    answered = 0
    command = "uv run --no-sync uvicorn outcomes:application --port 8000"
    environment = PRODUCTION | {"LOG_FORMAT": log_format}
    with failing.serve(command, **environment) as server:
        connection = PersistentClient(server.port).connect()
        for request in fuzz(10_000 if FULL else 500):
            connection.sendall(request)
            answer = read_answer(connection)
            if b"x-request-id" not in answer.lower():
                # uvicorn itself refused it.
                connection.close()
                connection = PersistentClient(server.port).connect()
                continue
            answered += 1
        connection.close()
    text = server.log.read_text(encoding="utf-8")
    lines = [
        PARSERS[log_format](line)
        for line in text.splitlines()
        # A traceback is indented.
        if log_format != "text" or not line.startswith("    ")
    ]
    levels = [line["level"] for line in lines if line["logger"] == "django.request"]
    # Lines about missing pages and exceptions.
    assert levels.count("warning") > 10
    assert levels.count("error") > 10
    timing = [line for line in lines if line["logger"] == "serving.timing"]
    assert len(timing) == answered > 100
    for line in timing:
        assert line["outcome"] == "completed"
        assert len(str(line["request_id"])) == 32
        assert set(line) <= {
            *("timestamp", "level", "logger", "message", "service", "request_id"),
            *("method", "path", "route", "status", "duration", "upload", "outcome"),
        }
