"""Pages for the tests, so that yours can change freely."""

import asyncio
import logging
from collections.abc import AsyncIterator

import structlog
from asgiref.sync import sync_to_async
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path
from onloop.server_timing import span

logger = logging.getLogger("pages")


async def answer(request: HttpRequest, status: int) -> HttpResponse:
    if status == 500:
        raise TimeoutError("the view fails")
    return HttpResponse(status=status)


async def headers(request: HttpRequest) -> HttpResponse:
    with span("shop", "Tom's"):
        return HttpResponse(headers={"X-Status": "own", "Server-Timing": "db;dur=1.5"})


async def log(request: HttpRequest) -> HttpResponse:
    logger.info("in the view")
    await sync_to_async(logger.info)("in a thread")
    await structlog.get_logger("pages").ainfo("by structlog", item=3)
    return HttpResponse()


async def wait(request: HttpRequest, cancelled: bool) -> HttpResponse:
    if cancelled and (task := asyncio.current_task()):
        task.cancel()
    await asyncio.Event().wait()
    raise AssertionError


async def stream(request: HttpRequest, end: str) -> StreamingHttpResponse:
    return StreamingHttpResponse(parts(end))


async def parts(end: str) -> AsyncIterator[bytes]:
    yield b"first"
    await asyncio.sleep(0.05)
    if end == "failed":
        raise RuntimeError("half way")
    yield b"last"


urlpatterns = [
    path("answer/<int:status>/", answer),
    path("headers/", headers),
    path("log/", log),
    path("wait/", wait, {"cancelled": False}),
    path("leave/", wait, {"cancelled": True}),
    path("stream/<str:end>/", stream),
]
