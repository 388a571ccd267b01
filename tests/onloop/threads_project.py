"""Views that need threads, for threads_asgi.py."""

import asyncio
import time
from collections.abc import AsyncIterator

from django.contrib.auth.models import User
from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from onloop import threads


async def hello(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"hello": "world"})


def synchronous(request: HttpRequest, seconds: str = "0") -> HttpResponse:
    time.sleep(float(seconds))
    return HttpResponse("sync")


async def orm(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(await User.objects.acount()))


def sleep_in_database(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(0.05)")
    return HttpResponse("slept")


def failing(request: HttpRequest) -> HttpResponse:
    """Leaves a connection that had an error, which is looked at afterwards."""
    User.objects.count()
    connection.errors_occurred = True
    return HttpResponse("error")


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    async def rows() -> AsyncIterator[str]:
        for _ in range(5):
            if "borrow" in request.GET:
                with threads.borrow():
                    count = await User.objects.acount()
            else:
                count = await User.objects.acount()
            yield f"data: {count}\n\n"
            await asyncio.sleep(0.2)

    return StreamingHttpResponse(rows(), content_type="text/event-stream")


urlpatterns = [
    path("", hello),
    path("sync/", synchronous),
    path("sync/<seconds>/", synchronous),
    path("orm/", orm),
    path("database/", sleep_in_database),
    path("failing/", failing),
    path("stream/", stream),
]
