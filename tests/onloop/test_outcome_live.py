"""observe() and RequestEnd over real sockets."""

import os
import signal
import socket
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from .server import Server, serve

ROOT = Path(__file__).parents[2]
Start = Callable[[str], AbstractContextManager[Server]]
pytestmark = pytest.mark.xdist_group("live outcomes")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    @contextmanager
    def start(application: str) -> Iterator[Server]:
        log = tmp_path_factory.mktemp("outcomes") / "log"
        command = [
            *(sys.executable, "-W", "error", "-m", "uvicorn"),
            *(f"tests.onloop.outcomes_asgi:{application}", "--no-access-log"),
            *("--timeout-graceful-shutdown", "1"),
        ]
        with serve(command, log, ROOT, os.environ) as server:
            yield server
        told = Counter(line["path"] for line in server.lines(message="end"))
        assert set(told.values()) <= {1}, told

    return start


@pytest.fixture(scope="module")
def onloop(start: Start) -> Iterator[Server]:
    with start("application") as server:
        yield server


@pytest.fixture(scope="module")
def stock(start: Start) -> Iterator[Server]:
    with start("stock_application") as server:
        yield server


@pytest.fixture(params=["onloop", "stock"])
def server(request: pytest.FixtureRequest) -> Server:
    server: Server = request.getfixturevalue(request.param)
    return server


def wait_for_event(server: Server, message: str, count: int = 1) -> None:
    server.wait_for(lambda: len(server.lines(message=message)) >= count)


def wait_for_end(server: Server, path: str) -> dict[str, Any]:
    server.wait_for(lambda: bool(server.lines(message="end", path=path)))
    [line] = server.lines(message="end", path=path)
    first_byte = line["end_first_byte"] or line["start"]
    assert line["start"] <= first_byte <= line["end_ended"]
    return line


def status_and_outcome(server: Server, path: str) -> tuple[int | None, str]:
    line = wait_for_end(server, path)
    return line["end_status"], line["end_outcome"]


def reset(client: socket.socket) -> None:
    """Without a goodbye: the server gets RST instead of FIN."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


LEAVE = pytest.mark.parametrize("leave", [socket.socket.close, reset])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/ok/?get", 200),
        ("HEAD", "/ok/?head", 200),
        ("OPTIONS", "/ok/?options", 200),
        ("GET", "/sync/", 200),
        ("GET", "/nowhere/", 404),
        ("GET", "/error/", 500),
        ("GET", "/file/", 200),
        ("HEAD", "/file/?head", 200),
        ("GET", "/unchanged/", 304),
        ("HEAD", "/stream/success/?head", 200),
    ],
)
def test_request_with_a_response_is_completed(
    server: Server, method: str, path: str, status: int
) -> None:
    headers = {"If-Modified-Since": "Thu, 01 Jan 2026 00:00:00 GMT"}
    assert server.request(path, method, headers)[0] == status
    assert status_and_outcome(server, path) == (status, "completed")


@pytest.mark.parametrize("path", ["/stream/success/", "/sync-stream/success/"])
def test_stream_that_ends_is_completed(server: Server, path: str) -> None:
    assert server.request(path) == (200, "first\nlast\n")
    assert status_and_outcome(server, path) == (200, "completed")
    assert wait_for_end(server, path)["end_first_byte"]


@pytest.mark.parametrize("path", ["/stream/failure/", "/sync-stream/failure/"])
def test_stream_that_raises_failed(server: Server, path: str) -> None:
    with server.connect(path) as client:
        while client.recv(4096):
            pass
    assert status_and_outcome(server, path) == (200, "failed")


@LEAVE
def test_client_that_leaves_before_the_response_is_disconnected(
    server: Server, leave: Callable[[socket.socket], None]
) -> None:
    cleaned = len(server.lines(message="cleaned up"))
    entered = len(server.lines(message="in the view"))
    path = f"/wait/?{leave.__name__}"
    client = server.connect(path)
    wait_for_event(server, "in the view", entered + 1)
    leave(client)
    assert status_and_outcome(server, path) == (499, "disconnected")
    wait_for_event(server, "cleaned up", cleaned + 1)
    assert wait_for_end(server, path)["colour"] == "red"


@LEAVE
def test_client_that_leaves_amid_a_stream_is_disconnected(
    server: Server, leave: Callable[[socket.socket], None]
) -> None:
    entered = len(server.lines(message="in the stream"))
    path = f"/stream/never/?{leave.__name__}"
    client = server.connect(path)
    wait_for_event(server, "in the stream", entered + 1)
    leave(client)
    assert status_and_outcome(server, path) == (200, "disconnected")
    line = wait_for_end(server, path)
    assert line["end_first_byte"]
    assert line["colour"] == "red"


def test_client_may_leave_once_it_has_the_announced_length(server: Server) -> None:
    entered = len(server.lines(message="in the stream"))
    with server.connect("/stream/length/") as client:
        received = b""
        while not received.endswith(b"last\n"):
            received += client.recv(4096)
        wait_for_event(server, "in the stream", entered + 1)
    assert status_and_outcome(server, "/stream/length/") == (200, "completed")


def test_response_that_nobody_gets_is_disconnected(onloop: Server) -> None:
    with onloop.connect("/stubborn/"):
        wait_for_event(onloop, "in the stubborn view")
    assert status_and_outcome(onloop, "/stubborn/") == (499, "disconnected")
    assert onloop.lines(message="ignored")


@LEAVE
def test_upload_that_is_aborted_is_disconnected(
    onloop: Server, leave: Callable[[socket.socket], None]
) -> None:
    path = f"/upload/?{leave.__name__}"
    client = socket.create_connection(("127.0.0.1", onloop.port), timeout=10)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n"
    client.sendall(f"{head}part".encode())
    leave(client)
    assert status_and_outcome(onloop, path) == (499, "disconnected")


def test_requests_of_one_connection_end_one_by_one(server: Server) -> None:
    request = "GET /ok/?{} HTTP/1.1\r\nHost: 127.0.0.1\r\n{}\r\n"
    pipelined = request.format("first", "") + request.format(
        "second", "Connection: close\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(pipelined.encode())
        while client.recv(4096):
            pass
    for path in ("/ok/?first", "/ok/?second"):
        assert status_and_outcome(server, path) == (200, "completed")


def test_requests_that_run_when_the_server_stops_are_cancelled(start: Start) -> None:
    with start("application") as server:
        server.request("/ok/")
        with server.connect("/wait/"), server.connect("/stream/never/"):
            wait_for_event(server, "in the view")
            wait_for_event(server, "in the stream")
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(30)
    assert status_and_outcome(server, "/ok/") == (200, "completed")
    assert status_and_outcome(server, "/wait/") == (None, "cancelled")
    assert status_and_outcome(server, "/stream/never/") == (200, "cancelled")
    # In its own task, not in another.
    assert len(server.lines(message="cleaned up")) == 2
