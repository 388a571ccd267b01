"""What only a live server shows."""

import json
import socket
from collections.abc import Iterator

import pytest
from django.conf import settings

from tests.server import Serve, Server


@pytest.fixture(scope="module", params=["own handler", "stock"])
def server(
    serve: Serve, live: Server, request: pytest.FixtureRequest
) -> Iterator[Server]:
    if request.param == "own handler":
        yield live
        return
    command = ("-m", "uvicorn", "tests.stock:application", "--port")
    with serve(*command, LOG_FORMAT="json") as server:
        yield server


def test_every_line_is_in_the_chosen_format(server: Server) -> None:
    assert server.get("/ok/").status == 200
    assert server.get("/nowhere/").status == 404
    # Django writes its own line after ours.
    server.wait_for(lambda: bool(server.parsed(logger="django.request")))
    loggers = {json.loads(line)["logger"] for line in server.lines()}
    assert loggers >= {"uvicorn.error", "django.request", "serving.timing"}


def test_each_request_has_one_line(server: Server) -> None:
    for name in "abc":
        assert server.get("/ok/", request_id=name).status == 200
        assert server.timing(request_id=name)["status"] == 200


def test_encoded_newline_in_a_path_stays_on_one_line(server: Server) -> None:
    server.get("/nowhere%0A%7B%22forged%22:1%7D/")
    line = server.timing(path='/nowhere\n{"forged":1}/')
    assert line["status"] == 404
    assert len(line["request_id"]) == 32


def test_client_that_leaves_a_stream_is_logged_as_disconnected(server: Server) -> None:
    with server.open("/stream/?end=never", request_id="leaves-here") as response:
        assert response.readline() == b"first\n"
    line = server.timing(request_id="leaves-here")
    assert line["outcome"] == "disconnected"
    assert line["status"] == 200


def test_runserver_says_how_many_middlewares_stay_on_the_loop(serve: Serve) -> None:
    with serve("manage.py", "runserver", "--noreload") as server:
        server.wait_for(lambda: "Serving on" in server.out.read_text())
    count = len(settings.MIDDLEWARE)
    line = f"{count} of {count} middlewares stay on the event loop.\n"
    assert line in server.out.read_text()


def test_runserver_refuses_a_port_in_use(serve: Serve) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with serve("manage.py", "runserver", "--noreload", port=port) as server:
            assert server.process.wait(60) == 1
    [line] = server.lines()
    assert line.startswith(f"CommandError: Port {port} on 127.0.0.1 is in use: ")
