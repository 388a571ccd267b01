"""How often a request leaves the loop, and how many threads it starts."""

import asyncio
import functools
import threading
from typing import Any

import pytest
from django.core.handlers.asgi import ASGIHandler as DjangoASGIHandler
from django.core.signals import request_started
from django.dispatch import Signal
from onloop.handler import ASGIHandler

from .conftest import Count, fetch

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("path", ["/", "/form/", "/session/read/", "/teapot/"])
async def test_async_view_needs_no_thread(
    handler: ASGIHandler, count: Count, path: str
) -> None:
    await fetch(handler, path)
    assert (count.hops, count.threads) == (0, 0)


async def test_valid_json_post_needs_no_thread(
    handler: ASGIHandler, count: Count
) -> None:
    token = "a" * 32
    headers = {**JSON, "cookie": f"csrftoken={token}", "x-csrftoken": token}
    answer = await fetch(handler, "/form/", "POST", b"{}", headers)
    assert (answer.status, count.hops, count.threads) == (200, 0, 0)


async def test_cache_in_async_view_acquires_a_thread_only_for_its_calls(
    handler: ASGIHandler, count: Count
) -> None:
    await fetch(handler, "/cache/")
    assert (count.hops, count.threads) == (2, 1)


@pytest.mark.django_db(transaction=True)
async def test_orm_read_acquires_one_thread(handler: ASGIHandler, count: Count) -> None:
    await fetch(handler, "/orm/3/")
    assert (count.hops, count.threads) == (3, 1)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("path", ["/orm/", "/sync/"])
async def test_no_thread_is_started_after_warm_up(
    handler: ASGIHandler, count: Count, path: str
) -> None:
    await fetch(handler, path)
    await fetch(handler, path)
    count.threads = 0
    for _ in range(5):
        await fetch(handler, path)
    assert count.threads == 0


async def test_sync_view_hops_once(handler: ASGIHandler, count: Count) -> None:
    await fetch(handler, "/sync/")
    assert (count.hops, count.threads) == (1, 1)


def synchronous_middleware(get_response: Any) -> Any:
    def middleware(request: Any) -> Any:
        response = get_response(request)
        response["X-Thread"] = threading.current_thread().name
        return response

    return middleware


async def test_sync_middleware_acquires_one_thread(count: Count, settings: Any) -> None:
    own = f"{__name__}.synchronous_middleware"
    settings.MIDDLEWARE = [*settings.MIDDLEWARE[:3], own, *settings.MIDDLEWARE[3:]]
    handler = ASGIHandler()
    answer = await fetch(handler)
    await handler.threads.shutdown()
    assert answer.header("x-thread")[0].startswith("request")
    assert (count.hops, count.threads) == (1, 1)


async def test_sync_receiver_of_request_started_hops_once(
    handler: ASGIHandler, count: Count
) -> None:
    def receiver(**kwargs: Any) -> None:
        pass

    request_started.connect(receiver)
    try:
        await fetch(handler)
    finally:
        request_started.disconnect(receiver)
    assert count.hops == 1


async def test_async_receivers_of_request_started_run_side_by_side(
    handler: ASGIHandler,
) -> None:
    meeting = asyncio.Barrier(2)

    async def one(**kwargs: Any) -> None:
        await meeting.wait()

    async def another(**kwargs: Any) -> None:
        await meeting.wait()

    request_started.connect(one)
    request_started.connect(another)
    try:
        async with asyncio.timeout(10):
            assert (await fetch(handler)).status == 200
    finally:
        request_started.disconnect(one)
        request_started.disconnect(another)


async def test_counting_sees_the_hops_of_stock_django(count: Count) -> None:
    await fetch(DjangoASGIHandler())
    assert count.hops >= 2
    assert count.threads >= 2


async def test_wrapped_receiver_of_djangos_does_not_hop(
    handler: ASGIHandler, count: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = Signal._live_receivers

    def wrapped(self: Signal, sender: Any) -> Any:
        synchronous, asynchronous = live(self, sender)
        return [
            functools.wraps(r)(lambda **kw: None) for r in synchronous
        ], asynchronous

    monkeypatch.setattr(Signal, "_live_receivers", wrapped)
    await fetch(handler)
    assert count.hops == 0
