"""Spans, queries and the header, with a middleware such as a project would write."""

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import markcoroutinefunction, sync_to_async
from django.db import connection, connections
from django.db.backends.signals import connection_created
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client
from django.urls import path
from onloop import server_timing
from onloop.server_timing import span

pytestmark = pytest.mark.urls(__name__)


class TimingMiddleware:
    sync_capable = False
    async_capable = True

    def __init__(self, get_response: Callable[..., Any]) -> None:
        self.get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> Any:
        start = time.perf_counter()
        metrics = server_timing.collect()
        response = await self.get_response(request)
        metrics.send(response, time.perf_counter() - start)
        return response


async def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


async def spans(request: HttpRequest) -> HttpResponse:
    with span("cache"):
        await asyncio.sleep(0)
    with span("shop", 'Tom\'s "A" \\ B'):
        return HttpResponse()


async def timed(request: HttpRequest) -> HttpResponse:
    with span("inner"):
        return HttpResponse(headers={"Server-Timing": "cache;dur=1.5"})


async def slow(request: HttpRequest) -> HttpResponse:
    with span("slow"):
        await asyncio.sleep(0.03)
    return HttpResponse()


async def failing(request: HttpRequest) -> HttpResponse:
    with span("tried"):
        raise ArithmeticError("on purpose")


@sync_to_async
def span_in_thread() -> None:
    with span("thread"):
        pass


async def threads(request: HttpRequest) -> HttpResponse:
    await span_in_thread()
    await asyncio.gather(span_in_thread(), span_in_thread())
    return HttpResponse()


def synchronous(request: HttpRequest) -> HttpResponse:
    with span("sync"):
        query()
    return HttpResponse()


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    async def parts() -> Any:
        with span("late"):
            yield b"part"

    return StreamingHttpResponse(parts())


def query() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def query_of_a_new_connection() -> None:
    # A new connection, as in a server whose threads have none yet.
    new = connection.copy()
    with new.cursor() as cursor:
        cursor.execute("SELECT 1")
    new.close()


async def queries(request: HttpRequest, times: int) -> HttpResponse:
    for _ in range(times):
        await sync_to_async(query_of_a_new_connection)()
    return HttpResponse()


arrived = asyncio.Event()


async def meeting(request: HttpRequest, name: str) -> HttpResponse:
    with span(name):
        if name == "first":
            await arrived.wait()
        else:
            arrived.set()
    return HttpResponse()


urlpatterns = [
    path("plain/", plain),
    path("spans/", spans),
    path("timed/", timed),
    path("slow/", slow),
    path("failing/", failing),
    path("threads/", threads),
    path("sync/", synchronous),
    path("stream/", stream),
    path("queries/<int:times>/", queries),
    path("meeting/<name>/", meeting),
]


@pytest.fixture(autouse=True)
def sent(settings: Any) -> None:
    settings.MIDDLEWARE = [f"{__name__}.TimingMiddleware"]


@pytest.fixture
def watched(transactional_db: None) -> Iterator[None]:
    server_timing.watch_queries()
    yield
    connection_created.disconnect(server_timing.watch_connection)
    for each in connections.all(initialized_only=True):
        each.execute_wrappers.clear()


async def entries(async_client: AsyncClient, url: str) -> list[str]:
    response = await async_client.get(url)
    header: str = response.headers["Server-Timing"]
    return header.split(", ")


def names(entries: list[str]) -> list[str]:
    return [entry.partition(";")[0] for entry in entries]


# The header.


async def test_request_without_spans_has_its_own_duration(
    async_client: AsyncClient,
) -> None:
    [entry] = await entries(async_client, "/plain/")
    assert re.fullmatch(r"app;dur=\d+\.\d", entry)


async def test_spans_are_sent_in_their_order_before_the_whole(
    async_client: AsyncClient,
) -> None:
    cache, shop, app = await entries(async_client, "/spans/")
    assert re.fullmatch(r"cache;dur=\d+\.\d", cache)
    assert re.fullmatch(r'shop;dur=\d+\.\d;desc="Tom\'s \\"A\\" \\\\ B"', shop)
    assert app.startswith("app;")


async def test_entries_of_the_view_come_first(async_client: AsyncClient) -> None:
    cache, inner, app = await entries(async_client, "/timed/")
    assert cache == "cache;dur=1.5"
    assert names([inner, app]) == ["inner", "app"]


async def test_durations_are_milliseconds(async_client: AsyncClient) -> None:
    slow, app = await entries(async_client, "/slow/")
    assert 30 <= float(slow.removeprefix("slow;dur=")) < 10_000
    assert 30 <= float(app.removeprefix("app;dur=")) < 10_000


async def test_span_that_raises_is_sent(async_client: AsyncClient) -> None:
    async_client.raise_request_exception = False
    assert names(await entries(async_client, "/failing/")) == ["tried", "app"]


async def test_spans_of_a_thread_are_sent(async_client: AsyncClient) -> None:
    sent = names(await entries(async_client, "/threads/"))
    assert sent == ["thread", "thread", "thread", "app"]


async def test_span_of_a_stream_comes_too_late(async_client: AsyncClient) -> None:
    response: Any = await async_client.get("/stream/")
    assert [part async for part in response] == [b"part"]
    assert names(response.headers["Server-Timing"].split(", ")) == ["app"]


def test_spans_and_queries_of_a_sync_view_are_sent(
    client: Client, watched: None
) -> None:
    header = client.get("/sync/").headers["Server-Timing"]
    assert names(header.split(", ")) == ["sync", "db", "app"]
    assert ';desc="1 query"' in header


async def test_concurrent_requests_have_their_own_spans(
    async_client: AsyncClient,
) -> None:
    global arrived
    arrived = asyncio.Event()
    first, second = await asyncio.gather(
        entries(async_client, "/meeting/first/"),
        entries(async_client, "/meeting/second/"),
    )
    assert names(first) == ["first", "app"]
    assert names(second) == ["second", "app"]


# Spans.


async def test_span_outside_of_a_request_does_nothing(
    async_client: AsyncClient, settings: Any
) -> None:
    with span("alone"):
        pass
    settings.MIDDLEWARE = []
    assert "Server-Timing" not in (await async_client.get("/spans/")).headers


@pytest.mark.parametrize("name", ["", "a b", "a;b", 'a"b', "f\u00fcr", "a\n"])
def test_name_that_is_no_token_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="use a token"), span(name):
        pytest.fail("the block was entered")


@pytest.mark.parametrize("description", ["\n", "a\r\nSet-Cookie: b", "f\u00fcr", "\0"])
def test_description_that_is_not_printable_ascii_is_refused(description: str) -> None:
    refused = pytest.raises(ValueError, match="must be printable ASCII")
    with refused, span("name", description):
        pytest.fail("the block was entered")


# Queries.


@pytest.mark.parametrize(("times", "description"), [(1, "1 query"), (3, "3 queries")])
async def test_queries_are_counted_in_any_thread_and_connection(
    async_client: AsyncClient, watched: None, times: int, description: str
) -> None:
    db, app = await entries(async_client, f"/queries/{times}/")
    assert re.fullmatch(rf'db;dur=\d+\.\d;desc="{description}"', db)
    assert app.startswith("app;")


async def test_request_without_queries_has_no_db_entry(
    async_client: AsyncClient, watched: None
) -> None:
    assert names(await entries(async_client, "/plain/")) == ["app"]


async def test_queries_are_not_counted_unless_watched(
    async_client: AsyncClient, transactional_db: None
) -> None:
    assert names(await entries(async_client, "/queries/2/")) == ["app"]


def test_queries_are_counted_once_when_watched_twice(
    client: Client, watched: None
) -> None:
    server_timing.watch_queries()
    header = client.get("/sync/").headers["Server-Timing"]
    assert ';desc="1 query"' in header


def test_query_that_fails_is_counted_and_raises(watched: None) -> None:
    metrics = server_timing.collect()
    with connection.cursor() as cursor, pytest.raises(Exception, match="no_such"):
        cursor.execute("SELECT * FROM no_such_table")
    assert metrics.queries == 1


def test_wrapper_of_another_package_is_removed_with_its_block(watched: None) -> None:
    def wrapper(execute: Any, *args: Any) -> Any:
        return execute(*args)

    new = connection.copy()
    # The connection opens within the block.
    with new.execute_wrapper(wrapper), new.cursor() as cursor:
        cursor.execute("SELECT 1")
    assert new.execute_wrappers == [server_timing.watch_query]
    new.close()


def test_query_outside_of_a_request_is_no_error(watched: None) -> None:
    query()
