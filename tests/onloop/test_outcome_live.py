"""observe() and RequestEnd over real sockets."""

import os
import re
import signal
import socket
import struct
import sys
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
pytestmark = pytest.mark.xdist_group("live outcomes")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    @contextmanager
    def start(application: str, *options: str, **environment: str) -> Iterator[Server]:
        log = tmp_path_factory.mktemp("outcomes") / "log"
        command = [
            *(sys.executable, "-W", "error", "-m", "uvicorn"),
            *(f"tests.onloop.outcomes_asgi:{application}", "--no-access-log"),
            *("--timeout-graceful-shutdown", "1", *options),
        ]
        with serve(command, log, ROOT, os.environ | environment) as server:
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


@pytest.fixture(scope="module")
def onloop_on_asyncio(start: Start) -> Iterator[Server]:
    with start("application", "--http", "h11", "--loop", "asyncio") as server:
        yield server


@pytest.fixture(params=["onloop", "onloop_on_asyncio"])
def any_onloop(request: pytest.FixtureRequest) -> Server:
    """With each HTTP parser, and each loop."""
    server: Server = request.getfixturevalue(request.param)
    return server


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
    """Close with RST instead of FIN."""
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


@pytest.mark.parametrize(
    "path",
    [
        "/raises/Unusual/",
        "/raises/SystemExit/",
        "/raises/GeneratorExit/",
        "/sync-raises/Unusual/",
        "/sync-raises/KeyboardInterrupt/",
    ],
)
def test_view_that_raises_a_base_exception_failed(onloop: Server, path: str) -> None:
    assert onloop.request(path)[0] == 500
    assert status_and_outcome(onloop, path) == (500, "failed")


@pytest.mark.parametrize(
    "path",
    [
        "/stream-raises/Unusual/",
        "/stream-raises/SystemExit/",
        "/stream-raises/GeneratorExit/",
        "/sync-stream-raises/Unusual/",
        "/sync-stream-raises/GeneratorExit/",
    ],
)
def test_stream_that_raises_a_base_exception_failed(onloop: Server, path: str) -> None:
    with onloop.connect(path) as client:
        while client.recv(4096):
            pass
    assert status_and_outcome(onloop, path) == (200, "failed")


def test_djangos_handler_does_not_tell_who_raised_generator_exit(
    stock: Server,
) -> None:
    for name, outcome in (("Unusual", "failed"), ("GeneratorExit", "disconnected")):
        path = f"/stream-raises/{name}/"
        with stock.connect(path) as client:
            while client.recv(4096):
                pass
        assert status_and_outcome(stock, path) == (200, outcome)


REFUSED = pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/refused/control/", 500),
        ("/refused/cookie/", 500),
        ("/refused/longer/", 200),
        ("/refused/shorter/", 200),
    ],
)


@REFUSED
def test_response_that_the_server_refuses_failed(
    any_onloop: Server, path: str, status: int
) -> None:
    with any_onloop.connect(path) as client:
        answer = b""
        while more := client.recv(4096):
            answer += more
    # Nobody received a status if the server closed the connection instead.
    assert answer.startswith(f"HTTP/1.1 {status}".encode()) or not answer
    assert status_and_outcome(any_onloop, path) == (status, "failed")


@REFUSED
def test_djangos_handler_does_not_tell_what_the_server_refused(
    stock: Server, path: str, status: int
) -> None:
    with stock.connect(path) as client:
        while client.recv(4096):
            pass
    assert status_and_outcome(stock, path) == (200, "completed")


def test_client_that_leaves_amid_a_large_response_is_disconnected(
    any_onloop: Server,
) -> None:
    with any_onloop.connect("/large/?left") as client:
        assert client.recv(1024).startswith(b"HTTP/1.1 200")
    end = wait_for_end(any_onloop, "/large/?left")
    assert (end["end_status"], end["end_outcome"]) == (200, "disconnected")
    assert end["end_first_byte"] is None
    assert len(any_onloop.request("/large/?read")[1]) == 50_000_000
    assert status_and_outcome(any_onloop, "/large/?read") == (200, "completed")


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


def test_response_that_nobody_receives_is_disconnected(onloop: Server) -> None:
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


CONTEXT = "{} /context/?{} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {}\r\n\r\n"
FOUND = re.compile(rb"\w+ \w+/\w+ \S+")


def test_pipelined_requests_start_with_a_clean_context(any_onloop: Server) -> None:
    requests = "".join(CONTEXT.format("GET", f"pipe{n}", 0) for n in range(3))
    with any_onloop.connect("/ok/?before") as client:
        client.sendall(requests.encode())
        answer = b""
        while len(found := FOUND.findall(answer)) < 3:
            answer += client.recv(4096)
    assert set(found) == {b"none America/Chicago en-us"}


def test_requests_after_a_large_body_start_with_a_clean_context(
    any_onloop: Server,
) -> None:
    body = b"x" * 500_000
    with any_onloop.connect("/ok/?large") as client:
        for number in range(3):
            head = CONTEXT.format("POST", f"large{number}", len(body))
            client.sendall(head.encode() + body)
            answer = b""
            while not (found := FOUND.findall(answer)):
                answer += client.recv(4096)
            assert found == [b"none America/Chicago en-us"]


def upload(server: Server, path: str) -> socket.socket:
    """Send the first half of a body of eight bytes."""
    client = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 8\r\n\r\n"
    client.sendall(f"{head}half".encode())
    return client


def test_upload_is_timed_by_itself(any_onloop: Server) -> None:
    head = CONTEXT.format("POST", "", 8).replace("/context/?", "/upload/?slow")
    with socket.create_connection(("127.0.0.1", any_onloop.port), timeout=10) as client:
        client.sendall(head[:-2].encode() + b"Expect: 100-continue\r\n\r\n")
        # The handler waits for the body.
        assert client.recv(100).startswith(b"HTTP/1.1 100 ")
        time.sleep(0.05)
        client.sendall(b"halfhalf")
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
    line = wait_for_end(any_onloop, "/upload/?slow")
    assert (line["end_status"], line["end_outcome"]) == (200, "completed")
    assert line["upload"] > 0.04
    any_onloop.request("/ok/?quick")
    assert 0 <= wait_for_end(any_onloop, "/ok/?quick")["upload"] < 0.04


def test_body_that_takes_longer_than_the_deadline_is_answered_504(start: Start) -> None:
    with start("application", REQUEST_TIMEOUT="0.3") as server:
        with upload(server, "/upload/?late") as client:
            answer = b""
            while more := client.recv(4096):
                answer += more
        assert answer.startswith(b"HTTP/1.1 504 ")
        assert b"\r\nconnection: close\r\n" in answer.lower()
        # Middlewares saw it: this header is of one.
        assert b"\r\nx-frame-options: DENY\r\n".lower() in answer.lower()
        assert answer.endswith(b"Gateway Timeout\n")
        line = wait_for_end(server, "/upload/?late")
        assert (line["end_status"], line["end_outcome"]) == (504, "completed")
        # The loop's clock may lag behind.
        assert line["upload"] > 0.1
        assert server.request("/ok/")[0] == 200


def test_generator_that_refuses_to_end_is_disconnected(onloop: Server) -> None:
    with onloop.connect("/endless/"):
        wait_for_event(onloop, "more")
    assert status_and_outcome(onloop, "/endless/") == (200, "disconnected")
    assert onloop.lines(message="refused")


def test_requests_that_run_when_the_server_stops_are_cancelled(start: Start) -> None:
    with start("application") as server:
        server.request("/ok/")
        with (
            server.connect("/wait/"),
            server.connect("/stream/never/"),
            server.connect("/cleans-up-for-ever/"),
            server.connect("/endless/"),
            upload(server, "/upload/"),
        ):
            wait_for_event(server, "in the view", 2)
            wait_for_event(server, "in the stream")
            wait_for_event(server, "more")
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(30)
    assert status_and_outcome(server, "/cleans-up-for-ever/") == (None, "cancelled")
    assert status_and_outcome(server, "/endless/") == (200, "cancelled")
    assert status_and_outcome(server, "/upload/") == (None, "cancelled")
    assert status_and_outcome(server, "/ok/") == (200, "completed")
    assert status_and_outcome(server, "/wait/") == (None, "cancelled")
    assert status_and_outcome(server, "/stream/never/") == (200, "cancelled")
    # In the request's own task, not in another.
    assert len(server.lines(message="cleaned up")) == 2
