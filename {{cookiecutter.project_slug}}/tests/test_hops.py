"""How often a request leaves the event loop, and how many threads that starts."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from asgiref.sync import SyncToAsync
from django.core.handlers.asgi import ASGIHandler
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.http import HttpRequest, HttpResponse
from django.urls import path

from serving.handler import Handler

pytestmark = pytest.mark.urls(__name__)


async def row(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(await MigrationRecorder.Migration.objects.afirst()))


def sync(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


async def asynchronous(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


urlpatterns = [
    path("row/", row),
    path("sync/", sync),
    path("async/", asynchronous),
]


class Count:
    hops = 0
    threads = 0


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Count:
    count = Count()
    call, start = SyncToAsync.__call__, threading.Thread.start

    async def counted_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        count.hops += 1
        return await call(self, *args, **kwargs)

    def counted_start(self: threading.Thread) -> None:
        count.threads += 1
        start(self)

    monkeypatch.setattr(SyncToAsync, "__call__", counted_call)
    monkeypatch.setattr(threading.Thread, "start", counted_start)
    return count


@pytest.fixture
def table(transactional_db: None) -> None:
    """Of the one model that every service has."""
    MigrationRecorder(connection).ensure_schema()


@pytest.fixture
async def handler() -> AsyncIterator[Handler]:
    handler = Handler()
    yield handler
    await handler.threads.shutdown()


async def get(application: Any, path: str) -> int:
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1")],
    }
    incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    incoming.put_nowait({"type": "http.request"})
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await application(scope, incoming.get, send)
    return int(sent[0]["status"])


async def test_async_view_needs_no_thread(handler: Handler, count: Count) -> None:
    assert await get(handler, "/async/") == 200
    assert (count.hops, count.threads) == (0, 0)


@pytest.mark.usefixtures("table")
async def test_database_read_borrows_one_thread(handler: Handler, count: Count) -> None:
    assert await get(handler, "/row/") == 200
    assert (count.hops, count.threads) == (1, 1)


async def test_sync_view_borrows_one_thread(handler: Handler, count: Count) -> None:
    assert await get(handler, "/sync/") == 200
    assert (count.hops, count.threads) == (1, 1)


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("path", ["/row/", "/sync/"])
async def test_no_thread_is_started_after_warm_up(
    handler: Handler, count: Count, path: str
) -> None:
    assert await get(handler, path) == 200
    count.threads = 0
    for _ in range(5):
        await get(handler, path)
    assert count.threads == 0


async def test_counting_sees_the_hops_of_djangos_own_handler(count: Count) -> None:
    assert await get(ASGIHandler(), "/async/") == 200
    assert count.hops > 0
    assert count.threads > 0
