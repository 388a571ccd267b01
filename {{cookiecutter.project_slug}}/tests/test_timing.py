import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest
from asgiref.sync import sync_to_async
from django.db import connection
from django.db.backends.signals import connection_created
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client
from django.urls import path
from pytest_django import Settings

from serving.middleware import TimingMiddleware
from serving.timing import span, watch_connection

pytestmark = pytest.mark.urls(__name__)


async def answer(request: HttpRequest, status: int) -> HttpResponse:
    if status == 500:
        raise RuntimeError("the view fails")
    return HttpResponse(status=status)


async def timed(request: HttpRequest) -> HttpResponse:
    return HttpResponse(headers={"Server-Timing": "cache;dur=1.5"})


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[bytes]:
        yield b"first"
        await asyncio.sleep(0.05)
        yield b"last"

    return StreamingHttpResponse(parts())


async def broken(request: HttpRequest) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[bytes]:
        yield b"first"
        raise RuntimeError("half way")

    return StreamingHttpResponse(parts())


async def spans(request: HttpRequest) -> HttpResponse:
    with span("cache"):
        await asyncio.sleep(0)
    with span("shop", 'Tom\'s "A"'):
        return HttpResponse()


@sync_to_async
def query() -> None:
    # A new connection, as in a server whose threads have none yet.
    fresh = connection.copy()
    with fresh.cursor() as cursor:
        cursor.execute("SELECT 1")
    fresh.close()


async def queries(request: HttpRequest) -> HttpResponse:
    for _ in range(3):
        await query()
    return HttpResponse()


urlpatterns = [
    path("spans/", spans),
    path("queries/", queries),
    path("answer/<int:status>/", answer),
    path("timed/", timed),
    path("stream/", stream),
    path("broken/", broken),
]
LogLines = Callable[[], list[dict[str, Any]]]


def timing(log_lines: LogLines) -> dict[str, Any]:
    [line] = [line for line in log_lines() if line["logger"] == "serving.timing"]
    return line


async def test_one_line_at_info_says_how_long_the_request_took(
    async_client: AsyncClient, log_lines: LogLines
) -> None:
    await async_client.get("/answer/200/?secret=1", headers={"X-Request-ID": "abc"})
    line = timing(log_lines)
    assert line["level"] == "info"
    assert re.fullmatch(r"Request took \d+\.\d{4} seconds", line["message"])
    assert line["message"] == f"Request took {line['duration']:.4f} seconds"
    assert line["request_id"] == "abc"
    assert line["method"] == "GET"
    assert line["path"] == "/answer/200/"
    assert line["route"] == "answer/<int:status>/"
    assert line["status"] == 200
    assert line["outcome"] == "completed"
    assert "first_byte" not in line


@pytest.mark.parametrize("status", [201, 404, 500])
async def test_line_has_the_status_of_the_response(
    async_client: AsyncClient, log_lines: LogLines, status: int
) -> None:
    async_client.raise_request_exception = False
    await async_client.get(f"/answer/{status}/")
    assert timing(log_lines)["status"] == status


async def test_line_has_no_route_when_no_url_matches(
    async_client: AsyncClient, log_lines: LogLines
) -> None:
    await async_client.get("/nowhere/")
    line = timing(log_lines)
    assert line["status"] == 404
    assert "route" not in line


def test_line_is_written_under_the_sync_client(
    client: Client, log_lines: LogLines
) -> None:
    client.get("/answer/200/")
    assert timing(log_lines)["outcome"] == "completed"


async def test_stream_is_timed_to_its_last_byte(
    async_client: AsyncClient, log_lines: LogLines
) -> None:
    response = cast(StreamingHttpResponse, await async_client.get("/stream/"))
    assert not [line for line in log_lines() if line["logger"] == "serving.timing"]
    assert [part async for part in response] == [b"first", b"last"]
    response.close()
    line = timing(log_lines)
    assert line["outcome"] == "completed"
    assert line["duration"] >= 0.05 > line["first_byte"]


async def test_stream_that_raises_half_way_failed(
    async_client: AsyncClient, log_lines: LogLines
) -> None:
    response = cast(StreamingHttpResponse, await async_client.get("/broken/"))
    with pytest.raises(RuntimeError, match="half way"):
        [part async for part in response]
    response.close()
    line = timing(log_lines)
    assert line["status"] == 200
    assert line["outcome"] == "failed"


async def test_stream_that_is_cut_off_closes_the_generator_of_the_view() -> None:
    closed = []

    async def parts() -> AsyncIterator[bytes]:
        try:
            yield b"first"
            yield b"last"
        finally:
            closed.append(asyncio.current_task())

    async def view(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(parts())

    response = await TimingMiddleware(view)(HttpRequest())
    content = vars(response)["_iterator"]
    await anext(content)
    await content.aclose()
    assert closed == [asyncio.current_task()]


async def test_cancelled_request_leaves_a_line_and_stays_cancelled(
    async_client: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    async def never(request: HttpRequest) -> HttpResponse:
        await asyncio.Event().wait()
        raise AssertionError

    request = HttpRequest()
    task = asyncio.create_task(TimingMiddleware(never)(request))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    [record] = [r for r in caplog.records if r.name == "serving.timing"]
    assert record.levelno == logging.INFO
    assert vars(record)["status"] == 499


@pytest.mark.parametrize(
    ("server_timing", "debug", "sent"),
    [
        ("debug", True, True),
        ("debug", False, False),
        ("always", False, True),
        ("never", True, False),
    ],
)
async def test_server_timing_is_sent_by_its_setting(
    async_client: AsyncClient,
    settings: Settings,
    server_timing: str,
    debug: bool,
    sent: bool,
) -> None:
    settings.DEBUG = debug
    settings.SERVER_TIMING = server_timing
    response = await async_client.get("/answer/200/")
    assert ("Server-Timing" in response.headers) is sent


async def test_server_timing_keeps_entries_of_the_view(
    async_client: AsyncClient, settings: Settings
) -> None:
    settings.SERVER_TIMING = "always"
    value = (await async_client.get("/timed/")).headers["Server-Timing"]
    assert re.fullmatch(r"cache;dur=1\.5, app;dur=\d+\.\d", value)


async def test_span_of_a_view_is_sent(
    async_client: AsyncClient, settings: Settings
) -> None:
    settings.SERVER_TIMING = "always"
    value = (await async_client.get("/spans/")).headers["Server-Timing"]
    assert re.fullmatch(
        r'cache;dur=\d+\.\d, shop;dur=\d+\.\d;desc="Tom\'s \\"A\\"", app;dur=\d+\.\d',
        value,
    )


async def test_span_costs_nothing_when_server_timing_is_not_sent(
    async_client: AsyncClient, settings: Settings
) -> None:
    settings.SERVER_TIMING = "never"
    assert "Server-Timing" not in (await async_client.get("/spans/")).headers


@pytest.mark.parametrize(("name", "description"), [("a b", ""), ("a", "\n"), ("", "")])
def test_malformed_span_is_refused(name: str, description: str) -> None:
    with pytest.raises(ValueError, match="must be"), span(name, description):
        pass


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("debug", "sent"), [(True, True), (False, False)])
async def test_queries_are_counted_only_while_debug_is_on(
    async_client: AsyncClient, settings: Settings, debug: bool, sent: bool
) -> None:
    settings.SERVER_TIMING = "always"
    settings.DEBUG = debug
    try:
        value = (await async_client.get("/queries/")).headers["Server-Timing"]
    finally:
        connection_created.disconnect(watch_connection)
    found = re.search(r'db;dur=\d+\.\d;desc="3 queries", app;', value)
    assert bool(found) is sent


async def test_request_without_queries_has_no_db_entry(
    async_client: AsyncClient, settings: Settings
) -> None:
    settings.SERVER_TIMING = "always"
    settings.DEBUG = True
    assert (
        "db;" not in (await async_client.get("/answer/200/")).headers["Server-Timing"]
    )


async def test_filter_changes_what_is_logged(
    async_client: AsyncClient, log_lines: LogLines
) -> None:
    def redact(record: logging.LogRecord) -> bool:
        vars(record)["path"] = "/redacted/"
        return True

    logger = logging.getLogger("serving.timing")
    logger.addFilter(redact)
    await async_client.get("/answer/200/")
    logger.removeFilter(redact)
    assert timing(log_lines)["path"] == "/redacted/"


async def test_record_factory_makes_the_record(
    async_client: AsyncClient, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = logging.LogRecord(*args, **kwargs)
        vars(record)["trace"] = "0af7"
        return record

    monkeypatch.setattr(logging, "_logRecordFactory", factory)
    await async_client.get("/answer/200/")
    assert timing(log_lines)["trace"] == "0af7"
