"""One line for each request, however it ends, and its id on every line."""

import asyncio
import re
from contextlib import suppress
from typing import cast

import pytest
from django.http import StreamingHttpResponse
from django.test import AsyncClient
from pytest_django import Settings

from tests.conftest import LogLines

pytestmark = pytest.mark.usefixtures("own_middleware")
ABC = {"X-Request-ID": "a.B_c-9"}


async def test_one_line_at_info_says_how_long_the_request_took(
    async_client: AsyncClient, log_lines: LogLines
) -> None:
    await async_client.get("/answer/200/?secret=1", headers=ABC)
    [line] = log_lines("serving.timing")
    assert line.pop("timestamp").endswith("Z")
    assert 0 < (duration := line.pop("duration")) < 9
    assert line == {
        "level": "info",
        "logger": "serving.timing",
        "message": f"Request took {duration:.4f} seconds",
        "service": "tests",
        "request_id": "a.B_c-9",
        "method": "GET",
        "path": "/answer/200/",
        "route": "answer/<int:status>/",
        "status": 200,
        "outcome": "completed",
    }


@pytest.mark.parametrize(
    ("path", "status"), [("answer/201", 201), ("answer/500", 500), ("nowhere", 404)]
)
async def test_line_has_the_status_and_the_route_if_there_is_one(
    async_client: AsyncClient, log_lines: LogLines, path: str, status: int
) -> None:
    async_client.raise_request_exception = False
    await async_client.get(f"/{path}/")
    [line] = log_lines("serving.timing")
    assert (line["status"], line["outcome"]) == (status, "completed")
    assert ("route" in line) is (status != 404)


@pytest.mark.parametrize("end", ["completed", "failed"])
async def test_stream_is_timed_to_its_last_byte(
    async_client: AsyncClient, log_lines: LogLines, end: str
) -> None:
    response = cast(StreamingHttpResponse, await async_client.get(f"/stream/{end}/"))
    assert not log_lines("serving.timing")
    with suppress(RuntimeError):
        assert [part async for part in response] == [b"first", b"last"]
    response.close()
    [line] = log_lines("serving.timing")
    assert (line["status"], line["outcome"]) == (200, end)
    assert line["duration"] >= 0.02 > line["first_byte"]


async def test_client_that_leaves_before_the_response_is_disconnected(
    async_client: AsyncClient, log_lines: LogLines
) -> None:
    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(async_client.get("/leave/"))
    [line] = log_lines("serving.timing")
    assert (line["status"], line["outcome"]) == (499, "disconnected")


@pytest.mark.parametrize(
    ("when", "debug", "sent"),
    [("debug", 1, True), ("debug", 0, False), ("always", 0, True), ("never", 1, False)],
)
async def test_server_timing_is_sent_by_its_setting(
    async_client: AsyncClient, settings: Settings, when: str, debug: int, sent: bool
) -> None:
    settings.DEBUG = debug
    settings.SERVER_TIMING = when
    value = (await async_client.get("/headers/")).headers["Server-Timing"]
    added = r', shop;dur=\d+\.\d;desc="Tom\'s", app;dur=\d+\.\d' if sent else ""
    assert re.fullmatch(rf"db;dur=1\.5{added}", value)


async def test_request_id_is_in_every_line_of_the_request_and_sent_back(
    async_client: AsyncClient, log_lines: LogLines
) -> None:
    response = await async_client.get("/log/", headers=ABC)
    assert response.headers["X-Request-ID"] == "a.B_c-9"
    lines = [*log_lines("pages"), *log_lines("serving.timing")]
    messages = ["in the view", "in a thread", "by structlog"]
    assert [line["message"] for line in lines][:-1] == messages
    assert {line["request_id"] for line in lines} == {"a.B_c-9"}


@pytest.mark.parametrize("request_id", ["", "a b", 'a"b', "a\nb", "\u00e9", "x" * 129])
async def test_invalid_request_id_is_replaced_by_a_new_one(
    async_client: AsyncClient, request_id: str
) -> None:
    headers = {"X-Request-ID": request_id}
    answers = [await async_client.get("/log/", headers=headers) for _ in range(2)]
    ids = {answer.headers["X-Request-ID"] for answer in answers}
    assert [len(made) for made in ids] == [32, 32]


@pytest.mark.parametrize(("level", "shown"), [("DEBUG", True), ("INFO", False)])
async def test_lines_before_and_after_the_response_are_for_debugging(
    async_client: AsyncClient, caplog: pytest.LogCaptureFixture, level: str, shown: bool
) -> None:
    with caplog.at_level(level, "serving.request"):
        await async_client.get("/log/")
    messages = [r.getMessage() for r in caplog.records if r.name == "serving.request"]
    assert messages == (["Before response", "After response"] if shown else [])
