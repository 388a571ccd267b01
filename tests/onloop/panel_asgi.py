"""A project with the panel, served by uvicorn."""

import asyncio
import gc
import inspect
import logging
import os
import sys
from collections.abc import AsyncIterator
from typing import Any, ClassVar
from uuid import UUID
from weakref import WeakSet

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.onloop.settings")

from asgiref.sync import SyncToAsync, async_to_sync, sync_to_async
from django.conf import settings
from django.db import connection
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import URLPattern, URLResolver, include, path
from django.views import View
from onloop.asgi import get_asgi_application
from onloop.logging import bind_fields

logger = logging.getLogger("panel")


async def plain(request: HttpRequest) -> HttpResponse:
    bind_fields(request_id=request.GET.get("id", "none"))
    logger.info("plain", extra={"colour": "green"})
    return HttpResponse("plain")


async def bound_uuid(request: HttpRequest) -> HttpResponse:
    bind_fields(request_id=UUID(int=1))
    return HttpResponse("uuid")


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[str]:
        yield "first"
        await asyncio.sleep(0.05)
        yield "last"

    return StreamingHttpResponse(parts())


async def endless(request: HttpRequest) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[str]:
        while True:
            yield "part"
            await asyncio.sleep(0.01)

    return StreamingHttpResponse(parts())


def query() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


async def queries(request: HttpRequest) -> HttpResponse:
    for _ in range(3):
        await sync_to_async(query)()
    await sync_to_async(len, thread_sensitive=False)("elsewhere")
    return HttpResponse("queries")


async def nothing() -> None: ...


def synchronous(request: HttpRequest) -> HttpResponse:
    async_to_sync(nothing)()
    return HttpResponse("synchronous")


class Page(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse("page")


async def tasks(request: HttpRequest) -> HttpResponse:
    await asyncio.gather(sync_to_async(len)("one"), sync_to_async(len)("two"))
    return HttpResponse("tasks")


async def is_coroutine_function(request: HttpRequest) -> HttpResponse:
    # Libraries that retry a call ask.
    found = inspect.iscoroutinefunction(SyncToAsync.__call__)
    return HttpResponse(str(found))


async def error(request: HttpRequest) -> HttpResponse:
    raise ValueError("broken")


class Held:
    """A local variable of a function that fails."""

    all: ClassVar[WeakSet["Held"]] = WeakSet()


async def caught(request: HttpRequest) -> HttpResponse:
    held = Held()
    Held.all.add(held)
    try:
        raise ValueError("caught")
    except ValueError:
        logger.exception("failed")
    return HttpResponse("caught")


async def count_held(request: HttpRequest) -> HttpResponse:
    gc.collect()
    return HttpResponse(str(len(Held.all)))


settings.DEBUG = os.environ.get("DEBUG") == "1"
if os.environ.get("TAKEN") and sys.version_info >= (3, 12):
    sys.monitoring.use_tool_id(3, "one")
    sys.monitoring.use_tool_id(4, "other")
settings.ROOT_URLCONF = __name__
# Without CommonMiddleware, no middleware checks the host.
settings.MIDDLEWARE = ["django.middleware.security.SecurityMiddleware"]
LOGGING: Any = settings.LOGGING
LOGGING["root"]["level"] = "INFO"
LOGGING["loggers"]["uvicorn"] = {"handlers": [], "propagate": True}
application = get_asgi_application()

urlpatterns: list[URLPattern | URLResolver] = [
    path("plain/", plain),
    path("stream/", stream),
    path("endless/", endless),
    path("queries/", queries),
    path("synchronous/", synchronous),
    path("class/", Page.as_view()),
    path("tasks/", tasks),
    path("coroutine-function/", is_coroutine_function),
    path("error/", error),
    path("caught/", caught),
    path("held/", count_held),
    path("uuid/", bound_uuid),
    path("__requests__/", include("onloop.panel.urls")),
]
