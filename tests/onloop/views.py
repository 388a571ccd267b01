"""Views to serve, and a record of what happened in them."""

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator
from typing import Any

from asgiref.sync import sync_to_async
from django.contrib import messages
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.core.cache import caches
from django.db import transaction
from django.http import (
    HttpRequest,
    HttpResponse,
    JsonResponse,
    StreamingHttpResponse,
)
from django.middleware.csrf import get_token
from django.urls import get_urlconf
from django.views.decorators.clickjacking import xframe_options_exempt
from django.views.decorators.csrf import csrf_exempt

events: list[str] = []
tasks: list[asyncio.Task[Any]] = []
arrived = asyncio.Event()
gate = threading.Event()
colour = contextvars.ContextVar("colour", default="none")


def reset() -> None:
    global arrived
    events.clear()
    tasks.clear()
    gate.clear()
    arrived = asyncio.Event()


async def hello(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"hello": "world"})


def synchronous(request: HttpRequest) -> HttpResponse:
    return HttpResponse("sync")


async def orm(request: HttpRequest, times: int = 1) -> HttpResponse:
    for _ in range(times):
        count = await User.objects.acount()
    return HttpResponse(str(count))


async def body(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.body)


async def urlconf(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(get_urlconf()))


async def thread(request: HttpRequest) -> HttpResponse:
    first = await sync_to_async(threading.get_ident)()
    second = await sync_to_async(threading.get_ident)()
    return JsonResponse([first, second], safe=False)


async def form(request: HttpRequest) -> HttpResponse:
    get_token(request)
    return HttpResponse("accepted")


async def session_write(request: HttpRequest) -> HttpResponse:
    await request.session.aset("colour", "green")
    return HttpResponse("written")


async def session_read(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(await request.session.aget("colour")))


async def session_flush(request: HttpRequest) -> HttpResponse:
    await request.session.aflush()
    return HttpResponse("flushed")


async def session_lose(request: HttpRequest) -> HttpResponse:
    await request.session.aset("colour", "red")
    await Session.objects.all().adelete()
    return HttpResponse("lost")


def session_sync(request: HttpRequest, do: str) -> HttpResponse:
    session = request.session
    if do == "write":
        session["colour"] = "green"
    elif do == "flush":
        session.flush()
    return HttpResponse(str(session.get("colour")))


async def message_add(request: HttpRequest) -> HttpResponse:
    messages.info(request, "Hello")
    return HttpResponse("added")


async def message_read(request: HttpRequest) -> HttpResponse:
    def read() -> str:
        return ", ".join(str(message) for message in messages.get_messages(request))

    return HttpResponse(await sync_to_async(read)())


@xframe_options_exempt
async def framed(request: HttpRequest) -> HttpResponse:
    return HttpResponse("framed")


async def wait(request: HttpRequest) -> HttpResponse:
    task = asyncio.current_task()
    colour.set("red")
    arrived.set()
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        events.append(f"cleanup {colour.get()} {asyncio.current_task() is task}")
    return HttpResponse("never")


async def half_a_transaction(request: HttpRequest) -> HttpResponse:
    await sync_to_async(transaction.atomic().__enter__)()
    await User.objects.acreate(username="half made")
    arrived.set()
    await asyncio.Event().wait()
    return HttpResponse("never")


async def write(request: HttpRequest, name: str) -> HttpResponse:
    await User.objects.acreate(username=name)
    return HttpResponse("written")


async def stubborn(request: HttpRequest) -> HttpResponse:
    arrived.set()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        events.append("ignored")
    return HttpResponse("finished")


async def chunks() -> AsyncIterator[bytes]:
    task = asyncio.current_task()
    try:
        while True:
            yield b"chunk"
            arrived.set()
            await asyncio.sleep(0.001)
    finally:
        events.append(f"stream closed {asyncio.current_task() is task}")


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(chunks())


async def broken_stream(request: HttpRequest) -> StreamingHttpResponse:
    async def half() -> AsyncIterator[bytes]:
        yield b"half"
        raise ArithmeticError("half way")

    return StreamingHttpResponse(half())


async def error(request: HttpRequest) -> HttpResponse:
    raise ArithmeticError("on purpose")


async def teapot(request: HttpRequest) -> HttpResponse:
    return HttpResponse("short and stout", status=418)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return HttpResponse("nowhere", status=404)


async def background(request: HttpRequest) -> HttpResponse:
    async def later() -> list[str]:
        await arrived.wait()
        seen = []
        async for user in User.objects.order_by("username").aiterator(chunk_size=1):
            seen.append(user.username)
        return seen

    tasks.append(asyncio.create_task(later()))
    return HttpResponse("started")


async def blocking(request: HttpRequest) -> HttpResponse:
    def block() -> None:
        asyncio_arrived()
        gate.wait(10)
        events.append(f"blocking call over, body {request.body!r}")

    loop = asyncio.get_running_loop()

    def asyncio_arrived() -> None:
        loop.call_soon_threadsafe(arrived.set)

    await sync_to_async(block)()
    return HttpResponse("unblocked")


async def context(request: HttpRequest) -> HttpResponse:
    before = colour.get()
    in_thread = await sync_to_async(colour.get)()
    await sync_to_async(colour.set)("yellow")
    return JsonResponse([before, in_thread, colour.get()], safe=False)


async def cached(request: HttpRequest) -> HttpResponse:
    await caches["default"].aset("key", "value")
    return HttpResponse(await caches["default"].aget("key"))


@csrf_exempt
def upload(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(len(request.body)))


@login_not_required
async def public(request: HttpRequest) -> HttpResponse:
    return HttpResponse("public")


async def large(request: HttpRequest) -> HttpResponse:
    return HttpResponse("large " * 2000)
