"""Views that need threads, for threads_asgi.py."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator

from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from onloop import threads

logger = logging.getLogger("threads_project")


async def hello(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"hello": "world"})


def synchronous(request: HttpRequest, seconds: int = 0) -> HttpResponse:
    logger.warning("in the view")
    time.sleep(seconds)
    return HttpResponse("sync")


async def orm(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(await ContentType.objects.acount()))


def failing(request: HttpRequest) -> HttpResponse:
    """Leave a connection that Django tests with a query when the request ends."""
    ContentType.objects.count()
    logger.warning("in the view")
    while not os.path.exists(os.environ["GATE"]):
        time.sleep(0.01)
    connection.errors_occurred = True
    return HttpResponse("failed")


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    async def rows() -> AsyncIterator[str]:
        for _ in range(5):
            if "release" in request.GET:
                with threads.acquire_thread():
                    count = await ContentType.objects.acount()
            else:
                count = await ContentType.objects.acount()
            yield f"data: {count}\n\n"
            await asyncio.sleep(0.1)

    return StreamingHttpResponse(rows(), content_type="text/event-stream")


urlpatterns = [
    path("", hello),
    path("sync/", synchronous),
    path("sync/<int:seconds>/", synchronous),
    path("orm/", orm),
    path("failing/", failing),
    path("stream/", stream),
]
