"""What the panel shows of a live server's requests, and when it is not available."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from .server import Server, serve

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "uvicorn", "tests.onloop.panel_asgi:application")
PANEL = "/__requests__/"
pytestmark = pytest.mark.xdist_group("panel of onloop")
markers = count()


@pytest.fixture(scope="module", params=["", "1"], ids=["free", "taken"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Where sys.monitoring has free ids, and where other tools have taken them."""
    log = tmp_path_factory.mktemp("panel") / "log"
    environment = {**os.environ, "DEBUG": "1", "TAKEN": request.param}
    with serve(COMMAND, log, ROOT, environment) as server:
        # Makes Django import the URLconf, and with it the panel.
        server.request("/plain/")
        yield server


def read_stream(server: Server, until: str, after: int = 0) -> list[dict[str, Any]]:
    """The requests that ended, up to the one with this id."""
    rows = []
    with server.connect(f"{PANEL}events?after={after}") as client:
        for line in client.makefile():
            if line.startswith("data: "):
                rows.append(json.loads(line[6:]))
                if rows[-1]["request_id"] == until:
                    break
    return rows


def latest(server: Server) -> list[dict[str, Any]]:
    """Newest first, without a last one that marks the end."""
    marker = f"marker-{next(markers)}"
    server.request(f"/plain/?id={marker}")
    return read_stream(server, marker)[-2::-1]


def request(server: Server, path: str, method: str = "GET") -> dict[str, Any]:
    """Make a request and return its row."""
    server.request(path, method)
    return latest(server)[0]


def hops(row: dict[str, Any]) -> dict[str, int]:
    return {what: times for times, what, _ in row["hops"]}


def test_async_view(server: Server) -> None:
    row = request(server, "/plain/?id=this-one")
    facts = {"method": "GET", "path": "/plain/", "route": "plain/", "status": 200}
    facts |= {"outcome": "completed", "request_id": "this-one"}
    assert facts.items() <= row.items()
    assert (row["hops"], row["queries"], row["database"]) == ([], 0, 0)
    assert 0 < row["duration"] == row["first_byte"]
    assert abs(row["ended"] - time.time()) < 60


def test_unknown_path(server: Server) -> None:
    row = request(server, "/<script>nowhere/", "POST")
    assert (row["method"], row["path"]) == ("POST", "/<script>nowhere/")
    assert (row["route"], row["status"]) == (None, 404)
    [[times, what, where]] = row["hops"]
    assert (times, what.rpartition(".")[2]) == (1, "response_for_exception")
    assert where.startswith("onloop/inlining.py:")


def test_stream_has_a_first_byte_before_its_end(server: Server) -> None:
    row = request(server, "/stream/")
    assert row["outcome"] == "completed"
    assert row["first_byte"] + 0.04 <= row["duration"]


def test_queries_and_the_line_that_made_the_hops(server: Server) -> None:
    row = request(server, "/queries/")
    assert row["queries"] == 3
    assert 0 < row["database"] < row["duration"]
    assert hops(row) == {"tests.onloop.panel_asgi.query": 3, "len": 1}
    for _, _, where in row["hops"]:
        assert where.startswith("tests/onloop/panel_asgi.py:")
        assert where.endswith(" in queries")


def test_class_is_named_and_not_its_function(server: Server) -> None:
    assert hops(request(server, "/class/")) == {"tests.onloop.panel_asgi.Page": 1}


def test_hops_that_tasks_begin_with(server: Server) -> None:
    assert request(server, "/tasks/")["hops"] == [[2, "len", "the start of a task"]]


def test_methods_of_asgiref_stay_coroutine_functions(server: Server) -> None:
    assert server.request("/coroutine-function/") == (200, "True")


def test_hops_of_a_synchronous_view_and_back(server: Server) -> None:
    assert hops(request(server, "/synchronous/")) == {
        "tests.onloop.panel_asgi.synchronous": 1,
        "async_to_sync(tests.onloop.panel_asgi.nothing)": 1,
    }


MEASURE = """
import asyncio
import importlib
import django
from django.conf import settings
from onloop.measure import measure

django.setup()
# It is imported as late as in `manage.py middleware`.
settings.ROOT_URLCONF = "tests.onloop.panel_asgi"
settings.DEBUG = True
for _ in range(2):
    for hop in asyncio.run(measure("/queries/")).thread_hops:
        print(hop.what, hop.where)
    from onloop.panel.recorder import latest
    print(sorted(latest[-1].hops.values()))
    importlib.reload(importlib.import_module("onloop.panel.urls"))
"""


def test_hops_are_measured_beside_it() -> None:
    command = [sys.executable, "-c", MEASURE]
    environment = {**os.environ, "DEBUG": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    where = r" tests/onloop/panel_asgi.py:\d+ in queries\n"
    once = rf"(tests.onloop.panel_asgi.query{where}){{3}}len{where}\[1, 3\]\n"
    assert re.fullmatch(f"({once}){{2}}", done.stdout)


def wait_for_row(server: Server, **facts: object) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []

    def arrived() -> bool:
        rows[:] = [row for row in latest(server) if facts.items() <= row.items()]
        return bool(rows)

    server.wait_for(arrived)
    return rows[0]


def test_client_that_leaves(server: Server) -> None:
    with server.connect("/endless/") as client:
        client.recv(100)
    row = wait_for_row(server, path="/endless/")
    assert (row["status"], row["outcome"]) == (200, "disconnected")


def test_client_that_leaves_while_its_body_arrives(server: Server) -> None:
    head = b"PUT /plain/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(head)
    row = wait_for_row(server, method="PUT")
    assert (row["status"], row["outcome"]) == (499, "disconnected")


def log_of(server: Server, row: dict[str, Any]) -> str:
    status, text = server.request(f"{PANEL}{row['number']}/log")
    assert status == 200
    return text


def test_log_lines(server: Server) -> None:
    text = log_of(server, request(server, "/plain/?id=lines"))
    first, *_ = text.split("\n")
    line = " INFO     panel: plain  request_id=lines colour=green"
    assert first.endswith(line), text
    failed = log_of(server, request(server, "/error/"))
    assert " ERROR    django.request: Internal Server Error: /error/" in failed
    assert failed.count("ValueError: broken") == 1


def test_logged_exception_is_shown_without_its_frames_being_kept(
    server: Server,
) -> None:
    assert "ValueError: caught" in log_of(server, request(server, "/caught/"))
    assert server.request("/held/") == (200, "0")


def test_request_id_of_any_type_is_shown(server: Server) -> None:
    row = request(server, "/uuid/")
    assert row["request_id"] == "00000000-0000-0000-0000-000000000001"


def test_log_of_an_old_request_is_gone(server: Server) -> None:
    assert server.request(f"{PANEL}1/log")[0] == 404


def test_its_own_requests_are_not_shown(server: Server) -> None:
    for path in ("", "panel.js", "panel.css", "panel.svg"):
        assert server.request(PANEL + path)[0] == 200
    assert not [row for row in latest(server) if row["path"].startswith(PANEL)]


def test_latest_200_are_kept_and_sent_once(server: Server) -> None:
    for _ in range(210):
        server.request("/plain/")
    rows = latest(server)
    assert len(rows) == 199
    numbers = [row["number"] for row in rows]
    assert numbers == sorted(numbers, reverse=True)
    server.request("/plain/?id=next")
    assert len(read_stream(server, "next", after=numbers[0])) == 2


def test_foreign_host_is_refused(server: Server) -> None:
    for path in ("", "events", "1/log"):
        assert server.request(PANEL + path, headers={"Host": "foreign"})[0] == 400


def test_open_panel_does_not_hold_up_the_end(tmp_path: Path) -> None:
    # Without a timeout uvicorn waits for open streams forever.
    environment = {**os.environ, "DEBUG": "1"}
    with (
        serve(COMMAND, tmp_path / "log", ROOT, environment) as server,
        server.connect(f"{PANEL}events") as client,
    ):
        stream = client.makefile()
        while stream.readline() != "retry: 500\n":
            pass
        server.process.terminate()
        # The last chunk: the stream ended properly.
        assert stream.read().endswith("\n0\n\n")
        server.process.wait(10)
    assert "Traceback" not in server.log.read_text()


CODE = """
import sys
from asgiref.sync import SyncToAsync
from django.core.handlers.asgi import ASGIHandler
from tests.onloop import panel_asgi
from onloop import outcome
from django.urls import resolve, Resolver404
if sys.version_info < (3, 12):
    watched = getattr(SyncToAsync.__call__, "__wrapped__", None)
else:
    watched = sys.monitoring.get_tool(4)
try:
    resolve("/__requests__/")
except Resolver404:
    print("404", outcome.start_trace, watched)
"""


def test_nothing_of_it_is_there_without_debug() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, check=True
    )
    assert done.stdout == b"404 None None\n"
