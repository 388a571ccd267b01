from typing import cast

import pytest
from django.conf import settings
from django.http import StreamingHttpResponse
from django.test import AsyncClient
from django.utils.html import escape

from serving.handler import Handler
from tests.test_hops import Count, count, get, handler  # noqa: F401


async def test_index_names_the_service(async_client: AsyncClient) -> None:
    response = await async_client.get("/")
    assert response.status_code == 200
    assert f"<h1>{escape(settings.PROJECT_NAME)}</h1>" in response.content.decode()


async def test_hello_greets_by_name(async_client: AsyncClient) -> None:
    response = await async_client.get("/hello/you/")
    assert response.json() == {"hello": "you"}


async def test_ticks_are_server_sent_events(async_client: AsyncClient) -> None:
    response = cast(StreamingHttpResponse, await async_client.get("/ticks/"))
    assert response.headers["Content-Type"] == "text/event-stream"
    event = await anext(aiter(response))
    assert event.startswith(b"data: 2")
    assert event.endswith(b"\n\n")


@pytest.mark.parametrize("path", ["/", "/hello/you/"])
async def test_page_needs_no_thread(
    handler: Handler,  # noqa: F811
    count: Count,  # noqa: F811
    path: str,
) -> None:
    assert await get(handler, path) == 200
    assert (count.hops, count.threads) == (0, 0)
