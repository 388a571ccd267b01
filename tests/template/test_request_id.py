"""A request has one id, whichever published packages have ids of their own."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.template.conftest import Bake
from tests.template.service import Answer, Line, Server, free_port

PROJECT = Path(__file__).parent / "project"
pytestmark = pytest.mark.xdist_group("log")


@pytest.fixture(scope="module")
def server(bake: Bake, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    service = bake(django_version="5.2", admin="false", log_format="json").copy(
        tmp_path_factory.mktemp("request_ids") / "service"
    )
    shutil.copy(PROJECT / "request_ids.py", service.path)
    port = free_port()
    # In this environment, which has the packages.
    command = [sys.executable, "-m", "uvicorn", "request_ids:application"]
    settings = {"SECRET_KEY": "x" * 50, "ALLOWED_HOSTS": "127.0.0.1", "DEBUG": ""}
    with service.start(
        [*command, "--port", str(port)], port, service.environment | settings
    ) as server:
        yield server


def ask(
    server: Server, path: str, place: str, **headers: str
) -> tuple[Answer, list[Line]]:
    """The response, and the log lines of the request."""

    def lines() -> list[Line]:
        lines = server.lines("json")
        return [line for line in lines if not line["logger"].startswith("uvicorn")]

    before = len(lines())
    answer = server.get(path, **{"X-Place": place}, **headers)
    server.wait_for(
        lambda: any(line["logger"] == "serving.timing" for line in lines()[before:])
    )
    return answer, lines()[before:]


@pytest.mark.parametrize("path", ["/page/", "/nowhere/"])
@pytest.mark.parametrize("headers", [{}, {"X-Request-ID": "a.B_c-9"}])
def test_request_has_one_id_on_every_line(
    server: Server, path: str, headers: dict[str, str]
) -> None:
    answer, lines = ask(server, path, "inside", **headers)
    request_id = answer.headers["x-request-id"]
    assert request_id == headers.get("X-Request-ID", request_id)
    assert {line.get("request_id") for line in lines} == {request_id}
    messages = {line["message"] for line in lines}
    assert messages >= {"request_started", "request_finished"}
    if path == "/page/":
        # What the view reads from the request's header.
        assert answer.body == request_id
        inside = {"in the view", "in a thread", "by structlog", "in the stream"}
        assert messages >= inside


def test_request_has_one_id_from_the_service_on(server: Server) -> None:
    answer, lines = ask(server, "/page/", "outside", **{"X-Request-ID": "5" * 32})
    first = [line["message"] for line in lines].index("in the view")
    assert answer.headers["x-request-id"] == "5" * 32
    assert {line["request_id"] for line in lines[first:]} == {"5" * 32}
