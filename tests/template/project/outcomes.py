"""Pages for every way in which a request can end; put into a service by a test."""

import asyncio
import logging
import os
import tempfile
import warnings
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import structlog
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.asgi import get_asgi_application as get_stock_application
from django.core.signals import request_finished
from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import last_modified
from onloop.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
logger = logging.getLogger("pages")


async def ok(request: HttpRequest) -> HttpResponse:
    logger.info("in the view")
    await sync_to_async(logger.info)("in a thread")
    await structlog.get_logger("pages").ainfo("by structlog")
    return HttpResponse("ok")


async def error(request: HttpRequest) -> HttpResponse:
    raise RuntimeError(request.GET.get("message", "the view fails"))


async def wait(request: HttpRequest) -> HttpResponse:
    logger.info("in the view")
    try:
        await asyncio.Event().wait()
    finally:
        logger.info("cleaned up")
        if "for-ever" in request.GET:
            await asyncio.Event().wait()
    raise AssertionError


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(parts(request.GET["end"]))


async def parts(end: str) -> AsyncIterator[bytes]:
    task = asyncio.current_task()
    try:
        yield b"first\n"
        await asyncio.sleep(0.05)
        if end == "failure":
            raise RuntimeError("half way")
        if end == "never":
            logger.info("in the stream")
            await asyncio.Event().wait()
        yield b"last\n"
    finally:
        own = asyncio.current_task() is task
        logger.info("cleaned up" if own else "cleaned up by another task")


async def file(request: HttpRequest) -> FileResponse:
    handle = tempfile.TemporaryFile()  # noqa: SIM115
    handle.write(b"x" * 100_000)
    handle.seek(0)
    return FileResponse(handle, filename="x.bin")


async def refused(request: HttpRequest) -> HttpResponse:
    """Django accepts the header, and the server rejects it."""
    return HttpResponse("ok", headers={"X-Name": "a\0b"})


@csrf_exempt
async def upload(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.body)


@last_modified(lambda request: datetime(2026, 1, 1, tzinfo=UTC))
async def unchanged(request: HttpRequest) -> HttpResponse:
    return HttpResponse("unchanged")


urlpatterns = [
    path("ok/", ok),
    path("error/", error),
    path("wait/", wait),
    path("stream/", stream),
    path("file/", file),
    path("refused/", refused),
    path("upload/", upload),
    path("unchanged/", unchanged),
]


def counted_send(*args: Any, **kwargs: Any) -> Any:
    logger.info("request_finished")
    return send(*args, **kwargs)


# Django warns about its own FileResponse, which reads the file in a thread.
warnings.filterwarnings("ignore", "StreamingHttpResponse must consume", Warning)
stock = os.environ.get("STOCK")
application = get_stock_application() if stock else get_asgi_application()
settings.ROOT_URLCONF = __name__
# A receiver would change how a request ends.
send = request_finished.send
request_finished.send = counted_send  # type: ignore[method-assign]
