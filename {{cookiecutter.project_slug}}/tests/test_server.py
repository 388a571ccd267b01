"""What only a live server shows."""

import json
from pathlib import Path

from tests.server import Serve, Server


def timing(server: Server) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in server.lines()]
    return [line for line in lines if line["logger"] == "serving.timing"]


def test_every_line_is_in_the_chosen_format_and_one_for_each_request(
    serve: Serve,
) -> None:
    with serve(LOG_FORMAT="json", RESPONSE_HEADER="X-Status: OK") as server:
        assert server.get("/hello/you/").status == 200
        assert server.get("/nowhere/").status == 404
        server.wait_for(lambda: len(timing(server)) == 2)
    assert [line["path"] for line in timing(server)] == ["/hello/you/", "/nowhere/"]
    loggers = {json.loads(line)["logger"] for line in server.lines()}
    assert {"uvicorn.error", "django.request", "serving.timing"} == loggers


def test_encoded_newline_in_a_path_stays_on_one_line(serve: Serve) -> None:
    with serve(LOG_FORMAT="json") as server:
        server.get("/nowhere%0A%7B%22forged%22:1%7D/")
        server.wait_for(lambda: len(timing(server)) == 1)
    assert timing(server)[0]["path"] == '/nowhere\n{"forged":1}/'


def test_client_that_leaves_a_stream_is_logged_as_disconnected(serve: Serve) -> None:
    with serve(LOG_FORMAT="json") as server:
        with server.open("/ticks/") as response:
            assert response.readline().startswith(b"data: ")
        server.wait_for(lambda: len(timing(server)) == 1)
    [line] = timing(server)
    assert line["outcome"] == "disconnected"
    assert line["status"] == 200


def test_runserver_serves_with_uvicorn(serve: Serve) -> None:
    with serve("manage.py", "runserver", "--noreload", LOG_FORMAT="json") as server:
        assert server.get("/hello/you/").status == 200
        assert json.loads(server.lines()[0])["logger"] == "uvicorn.error"


def test_runserver_refuses_a_port_in_use(serve: Serve) -> None:
    with serve() as server:
        command = ("manage.py", "runserver", "--noreload", str(server.port))
        with serve(*command[:-1], port=server.port) as second:
            assert second.process.wait(10) == 1
    assert f"Port {server.port} on 127.0.0.1 is in use" in second.lines()[-1]


def test_runserver_reloads_when_a_file_changes(serve: Serve) -> None:
    with serve("manage.py", "runserver", LOG_FORMAT="json") as server:
        started = "Application startup complete."
        server.wait_for(lambda: started in server.log.read_text())
        Path(__file__).touch()
        server.wait_for(lambda: server.log.read_text().count(started) == 2)
        assert server.get("/hello/you/").status == 200
