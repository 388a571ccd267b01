"""A project with every way in which a request can end, in process and over a socket."""

import asyncio
import logging
import os
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, NamedTuple

from asgiref.sync import markcoroutinefunction
from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import path
from django.utils import timezone, translation
from django.utils.decorators import async_only_middleware
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import last_modified
from onloop.outcome import RequestEnd, observe, upload_seconds

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.onloop.settings")

logger = logging.getLogger("outcomes")
colour = ContextVar("colour", default="none")


class Observed(NamedTuple):
    """What one observer learned about one request."""

    observer: str
    path: str
    start: float
    end: RequestEnd
    colour: str
    told_in: str


ends: list[Observed] = []
events: list[str] = []
arrived = asyncio.Event()
gate = threading.Event()


def reset() -> None:
    global arrived
    ends.clear()
    events.clear()
    gate.clear()
    arrived = asyncio.Event()


def log(event: str) -> None:
    events.append(event)
    logger.info(event)


class Observer:
    sync_capable = False
    async_capable = True

    def __init__(self, get_response: Callable[..., Any]) -> None:
        self.get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> HttpResponseBase:
        start = time.perf_counter()
        colour.set("none")

        def on_end(end: RequestEnd) -> None:
            self.record(request, start, end)

        with observe(request, on_end) as observation:
            response: Any = await self.get_response(request)
            observation.response = response
        return response  # type: ignore[no-any-return]

    def process_abort(
        self, request: HttpRequest, start: float, end: RequestEnd
    ) -> None:
        self.record(request, start, end)

    def record(self, request: HttpRequest, start: float, end: RequestEnd) -> None:
        fields = Observed(
            type(self).__name__,
            request.get_full_path(),
            start,
            end,
            colour.get(),
            threading.current_thread().name,
        )
        ends.append(fields)
        extra = fields._asdict() | {"upload": upload_seconds(request)}
        extra |= {
            f"end_{name}": value for name, value in extra.pop("end")._asdict().items()
        }
        logger.info("end", extra=extra)


class Outer(Observer):
    pass


@async_only_middleware
def replacing(get_response: Callable[..., Any]) -> Callable[..., Any]:
    async def middleware(request: HttpRequest) -> Any:
        response = await get_response(request)
        if "wait" in request.GET:
            arrived.set()
            await asyncio.Event().wait()
            return response
        # The traceback would keep it alive.
        del response
        if "raise" in request.GET:
            raise ArithmeticError("on purpose")
        return HttpResponse("another")

    return middleware


@async_only_middleware
def deadline(get_response: Callable[..., Any]) -> Callable[..., Any]:
    async def middleware(request: HttpRequest) -> Any:
        try:
            async with asyncio.timeout(0.01):
                return await get_response(request)
        except TimeoutError:
            return HttpResponse(status=504)

    return middleware


async def ok(request: HttpRequest) -> HttpResponse:
    colour.set("red")
    return HttpResponse("ok")


def synchronous(request: HttpRequest) -> HttpResponse:
    return HttpResponse("ok")


async def error(request: HttpRequest) -> HttpResponse:
    raise ArithmeticError("on purpose")


async def cancels_itself(request: HttpRequest) -> HttpResponse:
    raise asyncio.CancelledError


async def wait(request: HttpRequest) -> HttpResponse:
    colour.set("red")
    log("in the view")
    arrived.set()
    try:
        await asyncio.Event().wait()
    finally:
        log("cleaned up")
    raise AssertionError


async def stubborn(request: HttpRequest) -> HttpResponseBase:
    log("in the stubborn view")
    arrived.set()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        log("ignored")
    if "stream" in request.GET:
        return StreamingHttpResponse(chunks("success", asyncio.current_task()))
    return HttpResponse("all the same")


async def chunks(end: str, task: "asyncio.Task[Any] | None") -> AsyncIterator[bytes]:
    try:
        if end == "empty":
            return
        yield b"first\n"
        if end == "failure":
            raise ArithmeticError("half way")
        if end == "never":
            log("in the stream")
            arrived.set()
            await asyncio.Event().wait()
        yield b"last\n"
        if end == "length":
            log("in the stream")
            arrived.set()
            await asyncio.Event().wait()
    finally:
        own = asyncio.current_task() is task
        log("cleaned up" if own else "cleaned up by another task")


async def stream(request: HttpRequest, end: str) -> StreamingHttpResponse:
    colour.set("red")
    response = StreamingHttpResponse(chunks(end, asyncio.current_task()))
    if end == "length":
        response.headers["Content-Length"] = "11"
    return response


def sync_chunks(end: str) -> Iterator[bytes]:
    try:
        yield b"first\n"
        if end == "failure":
            raise ArithmeticError("half way")
        yield b"last\n"
    finally:
        log("cleaned up")


def sync_stream(request: HttpRequest, end: str) -> StreamingHttpResponse:
    return StreamingHttpResponse(sync_chunks(end))


def file(request: HttpRequest) -> FileResponse:
    handle = tempfile.TemporaryFile()  # noqa: SIM115
    handle.write(b"x" * 100_000)
    handle.seek(0)
    return FileResponse(handle, filename="x.bin")


@last_modified(lambda request: datetime(2026, 1, 1, tzinfo=UTC))
async def unchanged(request: HttpRequest) -> HttpResponse:
    return HttpResponse("unchanged")


@csrf_exempt
async def upload(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(len(request.body)))


def blocking(request: HttpRequest) -> HttpResponse:
    log("in the view")
    gate.wait(10)
    log("left the view")
    return HttpResponse("ok")


async def cleans_up_for_ever(request: HttpRequest) -> HttpResponse:
    log("in the view")
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.Event().wait()
    raise AssertionError


async def endless() -> AsyncIterator[bytes]:
    """A generator that does not end when it is closed."""
    while True:
        try:
            yield b"more\n"
            log("more")
            await asyncio.sleep(0.01)
        except (GeneratorExit, asyncio.CancelledError):
            log("refused")


async def endless_stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(endless())


class Unusual(BaseException):
    pass


UNUSUAL = {
    error.__name__: error
    for error in (Unusual, GeneratorExit, SystemExit, KeyboardInterrupt)
}


async def raises(request: HttpRequest, name: str) -> HttpResponse:
    raise UNUSUAL[name]


def sync_raises(request: HttpRequest, name: str) -> HttpResponse:
    raise UNUSUAL[name]


async def stream_raises(request: HttpRequest, name: str) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[bytes]:
        yield b"first\n"
        raise UNUSUAL[name]

    return StreamingHttpResponse(parts())


def sync_stream_raises(request: HttpRequest, name: str) -> StreamingHttpResponse:
    def parts() -> Iterator[bytes]:
        yield b"first\n"
        raise UNUSUAL[name]

    return StreamingHttpResponse(parts())


async def refused(request: HttpRequest, what: str) -> HttpResponse:
    """A response that the server cannot send, or only a part of it."""
    response = HttpResponse("ok")
    if what == "control":
        # Django refuses only line breaks.
        response.headers["X-Name"] = "a\0b"
    elif what == "cookie":
        response.cookies["name"] = "value"
        response.cookies["name"]["path"] = "/\u20ac"
    elif what == "longer":
        response.headers["Content-Length"] = "1"
    else:
        response.headers["Content-Length"] = "3"
    return response


async def large(request: HttpRequest) -> HttpResponse:
    return HttpResponse(b"x" * 50_000_000)


async def context(request: HttpRequest) -> HttpResponse:
    """The context in which the request found itself; it leaves changes behind."""
    name = timezone.get_current_timezone_name()
    found = f"{colour.get()} {name} {translation.get_language()}\n"
    colour.set("blue")
    timezone.activate("Asia/Tokyo")
    translation.activate("de")
    return HttpResponse(found)


urlpatterns = [
    path("ok/", ok),
    path("sync/", synchronous),
    path("error/", error),
    path("cancels-itself/", cancels_itself),
    path("wait/", wait),
    path("stubborn/", stubborn),
    path("stream/<end>/", stream),
    path("sync-stream/<end>/", sync_stream),
    path("file/", file),
    path("unchanged/", unchanged),
    path("upload/", upload),
    path("blocking/", blocking),
    path("cleans-up-for-ever/", cleans_up_for_ever),
    path("endless/", endless_stream),
    path("raises/<name>/", raises),
    path("sync-raises/<name>/", sync_raises),
    path("stream-raises/<name>/", stream_raises),
    path("sync-stream-raises/<name>/", sync_stream_raises),
    path("refused/<what>/", refused),
    path("large/", large),
    path("context/", csrf_exempt(context)),
]
