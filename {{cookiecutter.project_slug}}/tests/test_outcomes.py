"""One true line for each request, however it ends: over real sockets."""

import re
import signal
import socket

import pytest

from tests.server import OUTCOMES, Serve, Server


@pytest.fixture
def server(live: Server) -> Server:
    return live


def ask(server: Server, path: str, request_id: str) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    client.sendall(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"X-Request-ID: {request_id}\r\n\r\n".encode()
    )
    return client


def logged(server: Server, message: str, request_id: str) -> bool:
    return bool(server.parsed(message=message, request_id=request_id))


def check(
    server: Server, request_id: str, status: int | None, outcome: str
) -> dict[str, object]:
    line = server.timing(request_id=request_id)
    assert line.get("status") == status
    assert line["outcome"] == outcome
    assert line["duration"] > 0
    assert re.fullmatch(r"Request took \d+\.\d{4} seconds", line["message"])
    server.wait_for(lambda: logged(server, "request_finished", request_id))
    assert len(server.parsed(message="request_finished", request_id=request_id)) == 1
    return line


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/ok/", 200),
        ("HEAD", "/ok/", 200),
        ("OPTIONS", "/ok/", 200),
        ("GET", "/nowhere/", 404),
        ("GET", "/error/", 500),
        ("GET", "/file/", 200),
        ("GET", "/unchanged/", 304),
    ],
)
def test_answered_request_is_completed(
    server: Server, method: str, path: str, status: int
) -> None:
    request_id = f"{method}{path.replace('/', '-')}"
    headers = {"If-Modified-Since": "Thu, 01 Jan 2026 00:00:00 GMT"}
    with server.open(path, method, request_id, **headers) as response:
        response.read()
    assert response.status == status
    line = check(server, request_id, status, "completed")
    assert line["method"] == method
    assert ("first_byte" in line) is (path == "/file/")


def test_stream_that_ends_is_completed_with_its_last_byte(server: Server) -> None:
    server.get("/stream/?end=success", request_id="stream-ends")
    line = check(server, "stream-ends", 200, "completed")
    assert float(str(line["duration"])) >= 0.05 > float(str(line["first_byte"]))


def test_stream_that_raises_half_way_failed(server: Server) -> None:
    with ask(server, "/stream/?end=failure", "stream-fails") as client:
        while client.recv(4096):
            pass
    check(server, "stream-fails", 200, "failed")


def test_client_that_leaves_before_the_response_is_disconnected(
    server: Server,
) -> None:
    with ask(server, "/wait/", "leaves"):
        server.wait_for(lambda: logged(server, "in the view", "leaves"))
    check(server, "leaves", 499, "disconnected")
    assert logged(server, "cleaned up", "leaves")


def test_client_that_leaves_amid_a_stream_is_disconnected(server: Server) -> None:
    with ask(server, "/stream/?end=never", "leaves-stream"):
        server.wait_for(lambda: logged(server, "in the stream", "leaves-stream"))
    line = check(server, "leaves-stream", 200, "disconnected")
    assert "first_byte" in line
    # Of the view's generator, in the request's own task and context.
    assert logged(server, "cleaned up", "leaves-stream")


def test_requests_that_run_when_the_server_stops_are_cancelled(serve: Serve) -> None:
    with serve(*OUTCOMES, "--port", LOG_FORMAT="json") as server:
        for number in range(50):
            server.get("/ok/", request_id=f"before-{number}")
        with ask(server, "/wait/", "view"), ask(server, "/stream/?end=never", "stream"):
            server.wait_for(lambda: logged(server, "in the view", "view"))
            server.wait_for(lambda: logged(server, "in the stream", "stream"))
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(60)
        check(server, "view", None, "cancelled")
        check(server, "stream", 200, "cancelled")
        # Nothing that was complete is lost either.
        assert len(server.parsed(route="ok/", outcome="completed")) == 50
        assert logged(server, "cleaned up", "view")
        assert logged(server, "cleaned up", "stream")
