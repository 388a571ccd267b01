"""The example pages; delete this file together with them."""

from collections.abc import Awaitable, Callable
from typing import Any

from django.conf import settings
from django.test import AsyncClient, AsyncRequestFactory
from django.utils.html import escape

from home import views

PATHS = ("/", "/favicon.ico", "/hello/you/")


async def test_index_names_the_service(async_rf: AsyncRequestFactory) -> None:
    response = await views.index(async_rf.get("/"))
    assert f"<h1>{escape(settings.PROJECT_NAME)}</h1>" in response.content.decode()


async def test_hello_greets_by_name(async_rf: AsyncRequestFactory) -> None:
    response = await views.hello(async_rf.get("/"), "you")
    assert response.content == b'{"hello": "you"}'


async def test_ticks_are_server_sent_events(async_rf: AsyncRequestFactory) -> None:
    response = await views.ticks(async_rf.get("/"))
    assert response.headers["Content-Type"] == "text/event-stream"
    event = await anext(aiter(response))
    assert (event[:7], event[-2:]) == (b"data: 2", b"\n\n")


async def test_pages_are_served(async_client: AsyncClient) -> None:
    responses = {path: await async_client.get(path) for path in PATHS}
    statuses = {path: response.status_code for path, response in responses.items()}
    assert statuses == dict.fromkeys(PATHS, 200), responses["/"].headers.get("Location")


async def test_pages_make_no_thread_hop(
    thread_hops: Callable[[str], Awaitable[list[Any]]],
) -> None:
    hops = [hop for path in PATHS for hop in await thread_hops(path)]
    assert [h for h in hops if h.middleware not in settings.SYNC_MIDDLEWARE] == []
