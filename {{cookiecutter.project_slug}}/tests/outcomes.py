"""An application with every way in which a request can end, for test_outcomes.py."""

import asyncio
import logging
import os
import tempfile
import warnings
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.core.signals import request_finished
from django.http import (
    FileResponse,
    HttpRequest,
    HttpResponse,
    StreamingHttpResponse,
)
from django.urls import path
from django.views.decorators.http import last_modified

from serving.handler import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
logger = logging.getLogger("tests")


async def ok(request: HttpRequest) -> HttpResponse:
    return HttpResponse("ok")


async def error(request: HttpRequest) -> HttpResponse:
    raise RuntimeError(request.GET.get("message", "the view fails"))


async def wait(request: HttpRequest) -> HttpResponse:
    logger.info("in the view")
    try:
        await asyncio.Event().wait()
    finally:
        logger.info("cleaned up")
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


@last_modified(lambda request: datetime(2026, 1, 1, tzinfo=UTC))
async def unchanged(request: HttpRequest) -> HttpResponse:
    return HttpResponse("unchanged")


urlpatterns = [
    path("ok/", ok),
    path("error/", error),
    path("wait/", wait),
    path("stream/", stream),
    path("file/", file),
    path("unchanged/", unchanged),
]


def counted_send(*args: Any, **kwargs: Any) -> Any:
    logger.info("request_finished")
    return send(*args, **kwargs)


# Django warns of its own FileResponse: it reads a file through a thread.
warnings.filterwarnings("ignore", "StreamingHttpResponse must consume", Warning)
application = get_asgi_application()
settings.ROOT_URLCONF = __name__
# A receiver would change how a request ends.
send = request_finished.send
request_finished.send = counted_send  # type: ignore[method-assign]
