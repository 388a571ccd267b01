"""One correct line for each request of a service, however it ends, over sockets."""

import json
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.template.conftest import Bake
from tests.template.prompts import TEXTS, choices
from tests.template.service import Server, Service

PROJECT = Path(__file__).parent / "project"
# On the worker of test_log_truth.py, in order to share the services.
pytestmark = pytest.mark.xdist_group("log")


@pytest.fixture(scope="module", params=choices("django_version"))
def service(
    request: pytest.FixtureRequest, with_module: Callable[[str, str], Service]
) -> Service:
    return with_module(request.param, "outcomes")


@pytest.fixture(scope="module")
def server(service: Service) -> Iterator[Server]:
    with service.serve_module("outcomes", LOG_LEVEL="DEBUG") as server:
        yield server


@pytest.fixture(scope="module")
def stock(service: Service) -> Iterator[Server]:
    """The service with Django's own handler, which config/asgi.py may use."""
    with service.serve_module("outcomes", STOCK="1") as server:
        yield server


def found(server: Server, **fields: object) -> list[dict[str, Any]]:
    """The lines with these fields; all of them parse."""
    whole, _, _ = server.log.read_text(encoding="utf-8").rpartition("\n")
    lines = map(json.loads, whole.splitlines())
    return [line for line in lines if fields.items() <= line.items()]


def wait_for(server: Server, **fields: object) -> None:
    server.wait_for(lambda: bool(found(server, **fields)))


def ask(server: Server, path: str, request_id: str, **headers: str) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    method = headers.pop("method", "GET")
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    lines += [f"X-Request-ID: {request_id}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    client.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
    return client


def timing(server: Server, request_id: str) -> dict[str, Any]:
    """Wait for the one timing line of a request."""
    fields = {"logger": "serving.timing", "request_id": request_id}
    wait_for(server, **fields)
    [line] = found(server, **fields)
    return line


def check(
    server: Server, request_id: str, status: int | None, outcome: str
) -> dict[str, Any]:
    line = timing(server, request_id)
    assert line.get("status") == status
    assert line["outcome"] == outcome
    assert line["duration"] > 0
    assert re.fullmatch(r"Request took \d+\.\d{4} seconds", line["message"])
    finished = {"message": "request_finished", "request_id": request_id}
    wait_for(server, **finished)
    assert len(found(server, **finished)) == 1
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
    since = {"If_Modified_Since": "Thu, 01 Jan 2026 00:00:00 GMT"}
    headers = {"Connection": "close", "method": method} | since
    with ask(server, path, request_id, **headers) as client:
        answer = b""
        while more := client.recv(65536):
            answer += more
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    line = check(server, request_id, status, "completed")
    assert line["method"] == method
    assert line["path"] == path
    assert ("route" in line) is (path != "/nowhere/")
    assert ("first_byte" in line) is (path == "/file/")


# What Java's HTTP client sends with each request for plain HTTP.
H2C = {
    "Connection": "Upgrade, HTTP2-Settings",
    "Upgrade": "h2c",
    "HTTP2_Settings": "AA",
}
SMUGGLED = b"GET /ok/ HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Request-ID: smuggled\r\n\r\n"


def test_request_for_an_upgrade_is_answered_without_it(server: Server) -> None:
    with ask(server, "/ok/", "upgrade", **H2C) as client:
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
    check(server, "upgrade", 200, "completed")


@pytest.mark.parametrize("chunked", [False, True])
def test_request_whose_body_the_server_lost_is_refused(
    server: Server, chunked: bool
) -> None:
    """What it takes for the next request is not answered."""
    body, announced = SMUGGLED, {"Content_Length": f"{len(SMUGGLED)}"}
    if chunked:
        body, announced = b"0\r\n\r\n" + SMUGGLED, {"Transfer_Encoding": "chunked"}
    request_id = f"lost-{chunked}"
    with ask(server, "/ok/", request_id, method="POST", **H2C, **announced) as client:
        client.sendall(body)
        answer = read(client)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    check(server, request_id, 400, "completed")
    assert not found(server, request_id="smuggled")


def test_stream_that_ends_is_completed_with_its_last_byte(server: Server) -> None:
    server.get("/stream/?end=success", **{"X-Request-ID": "stream-ends"})
    line = check(server, "stream-ends", 200, "completed")
    assert line["duration"] >= 0.05 > line["first_byte"]


def test_stream_that_raises_half_way_failed(server: Server) -> None:
    with ask(server, "/stream/?end=failure", "stream-fails") as client:
        while client.recv(4096):
            pass
    check(server, "stream-fails", 200, "failed")


def test_client_that_leaves_before_the_response_is_disconnected(
    server: Server,
) -> None:
    in_view = {"message": "in the view", "request_id": "leaves"}
    with ask(server, "/wait/", "leaves"):
        wait_for(server, **in_view)
    check(server, "leaves", 499, "disconnected")
    assert found(server, message="cleaned up", request_id="leaves")


def test_client_that_leaves_amid_a_stream_is_disconnected(server: Server) -> None:
    in_stream = {"message": "in the stream", "request_id": "leaves-stream"}
    with ask(server, "/stream/?end=never", "leaves-stream"):
        wait_for(server, **in_stream)
    line = check(server, "leaves-stream", 200, "disconnected")
    assert "first_byte" in line
    # The view's generator is closed in the request's own task and context.
    assert found(server, message="cleaned up", request_id="leaves-stream")


def test_client_that_leaves_during_its_upload_is_disconnected(server: Server) -> None:
    upload = {"method": "POST", "Content_Length": "1000"}
    with ask(server, "/ok/?secret=1", "leaves-upload", **upload) as client:
        client.sendall(b"x")
    line = timing(server, "leaves-upload")
    assert (line["status"], line["outcome"]) == (499, "disconnected")
    assert (line["method"], line["path"]) == ("POST", "/ok/")
    assert line["duration"] > 0
    assert not found(server, message="in the view", request_id="leaves-upload")


def read(client: socket.socket) -> bytes:
    answer = b""
    # The server may close the connection before it has read all.
    with suppress(ConnectionResetError):
        while more := client.recv(65536):
            answer += more
    return answer


def test_response_that_the_server_refuses_failed(server: Server) -> None:
    with ask(server, "/refused/", "refused") as client:
        assert not read(client)
    check(server, "refused", 500, "failed")


def test_upload_is_timed_by_itself(server: Server) -> None:
    upload = {"method": "POST", "Content_Length": "2", "Connection": "close"}
    with ask(server, "/upload/", "upload", Expect="100-continue", **upload) as client:
        # The handler waits for the body.
        assert client.recv(100).startswith(b"HTTP/1.1 100 ")
        time.sleep(0.05)
        client.sendall(b"12")
        assert read(client).endswith(b"12")
    assert check(server, "upload", 200, "completed")["upload"] > 0.04


def test_late_request_is_completed_with_the_status_of_the_deadline(
    service: Service,
) -> None:
    with service.serve_module("outcomes", REQUEST_TIMEOUT="0.2") as server:
        assert server.get("/wait/", **{"X-Request-ID": "late"}).status == 504
        check(server, "late", 504, "completed")
        assert found(server, message="cleaned up", request_id="late")
        upload = {"method": "POST", "Content_Length": "1000"}
        with ask(server, "/upload/", "late-upload", **upload) as client:
            answer = read(client)
        assert answer.startswith(b"HTTP/1.1 504 ")
        assert b"x-request-id: late-upload\r\n" in answer.lower()
        assert "upload" in check(server, "late-upload", 504, "completed")


def test_requests_that_run_when_the_server_stops_are_cancelled(
    service: Service,
) -> None:
    with service.serve_module("outcomes") as server:
        for number in range(50):
            server.get("/ok/", **{"X-Request-ID": f"before-{number}"})
        upload = {"method": "POST", "Content_Length": "1000"}
        with (
            ask(server, "/wait/", "view"),
            ask(server, "/wait/?for-ever", "view-for-ever"),
            ask(server, "/stream/?end=never", "stream"),
            ask(server, "/upload/", "upload", **upload),
        ):
            for request_id in ("view", "view-for-ever"):
                wait_for(server, message="in the view", request_id=request_id)
            wait_for(server, message="in the stream")
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(60)
        check(server, "view", None, "cancelled")
        check(server, "stream", 200, "cancelled")
        for request_id in ("view-for-ever", "upload"):
            line = timing(server, request_id)
            assert "status" not in line
            assert line["outcome"] == "cancelled"
        # Completed requests are not lost either.
        assert len(found(server, route="ok/", outcome="completed")) == 50
        assert found(server, message="cleaned up", request_id="view")
        assert found(server, message="cleaned up", request_id="stream")


def test_every_line_of_a_request_carries_its_id(server: Server) -> None:
    answer = server.get("/ok/", **{"X-Request-ID": "abc"})
    assert answer.headers["x-request-id"] == "abc"
    timing(server, "abc")
    messages = [line["message"] for line in found(server, request_id="abc")]
    assert messages[0] == "Before response"
    assert messages[1:4] == ["in the view", "in a thread", "by structlog"]
    assert "After response" in messages[4:]


def test_loggers_of_django_and_uvicorn_share_the_format(
    server: Server, stock: Server
) -> None:
    for each in (server, stock):
        assert each.get("/nowhere%0A%7B%22forged%22:1%7D/").status == 404
        wait_for(each, logger="django.request")
        wait_for(each, path='/nowhere\n{"forged":1}/')
        loggers = {line["logger"] for line in found(each)}
        assert loggers >= {"uvicorn.error", "django.request", "serving.timing"}


def test_lines_are_true_under_djangos_own_handler_too(stock: Server) -> None:
    stock.get("/ok/", **{"X-Request-ID": "stock-ok"})
    line = timing(stock, "stock-ok")
    assert (line["status"], line["outcome"]) == (200, "completed")
    in_stream = {"message": "in the stream", "request_id": "stock-leaves"}
    with ask(stock, "/stream/?end=never", "stock-leaves"):
        wait_for(stock, **in_stream)
    line = timing(stock, "stock-leaves")
    assert (line["status"], line["outcome"]) == (200, "disconnected")


def test_service_passes_the_tests_that_its_owner_does_not_need(
    bake: Bake, installed: Service, tmp_path: Path
) -> None:
    header = TEXTS["response_header"]
    baked = bake(deploy="none", ci="none", response_header=header)
    service = baked.copy_in_environment(tmp_path / "service", installed)
    shutil.copy(PROJECT / "more_tests.py", service.path / "tests" / "test_more.py")
    output = service.run(
        # The service has SQLite; psycopg says which options it takes.
        "uv run --no-sync --with psycopg[binary] python -m pytest -p no:cacheprovider "
        "tests/test_more.py",
        EXPECTED_HEADER=header,
    )
    assert re.search(r"\d+ passed in", output)
    assert "skipped" not in output
