"""The views of the soak; `token` is the request's id, which every answer repeats."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator

import sentry_sdk
from bench.models import Item
from django.http import HttpRequest, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

logger = logging.getLogger("soak")
background: set[asyncio.Task[None]] = set()


async def json(request: HttpRequest, token: str) -> JsonResponse:
    return JsonResponse({"token": token})


def sync(request: HttpRequest, token: str) -> JsonResponse:
    time.sleep(0.02)
    return JsonResponse({"token": token})


async def orm(request: HttpRequest, token: str) -> JsonResponse:
    item = await Item.objects.aget(pk=7)
    return JsonResponse({"token": token, "name": item.name})


async def session(request: HttpRequest, token: str) -> JsonResponse:
    count = await request.session.aget("count", 0) + 1
    await request.session.aset("count", count)
    return JsonResponse({"token": token, "count": count})


async def later(request: HttpRequest, token: str) -> JsonResponse:
    async def after_the_response() -> None:
        await asyncio.sleep(0.01)
        logger.info("Counted %s for %s", await Item.objects.acount(), token)

    task = asyncio.create_task(after_the_response())
    background.add(task)
    task.add_done_callback(background.discard)
    return JsonResponse({"token": token})


async def fail(request: HttpRequest, token: str) -> JsonResponse:
    sentry_sdk.set_tag("token", token)
    await asyncio.sleep(0.005)
    raise ArithmeticError(token)


def fail_sync(request: HttpRequest, token: str) -> JsonResponse:
    sentry_sdk.set_tag("token", token)
    time.sleep(0.005)
    raise ArithmeticError(token)


async def slow(request: HttpRequest, token: str) -> JsonResponse:
    await asyncio.sleep(10)
    return JsonResponse({"token": token})


def stream(request: HttpRequest, token: str, events: int) -> StreamingHttpResponse:
    async def content() -> AsyncIterator[str]:
        for _ in range(events):
            yield f"data: {token}\n\n"
            await asyncio.sleep(0.01)

    return StreamingHttpResponse(content(), content_type="text/event-stream")


def stream_sync(request: HttpRequest, token: str) -> StreamingHttpResponse:
    def content() -> Iterator[str]:
        for item in Item.objects.all()[:10]:
            yield f"{token} {item.name}\n"

    return StreamingHttpResponse(content())


async def stream_fails(request: HttpRequest, token: str) -> StreamingHttpResponse:
    async def content() -> AsyncIterator[str]:
        yield token
        raise ArithmeticError(token)

    return StreamingHttpResponse(content())


@csrf_exempt
async def upload(request: HttpRequest, token: str) -> JsonResponse:
    return JsonResponse({"token": token, "bytes": len(request.body)})


urlpatterns = [
    path("json/<token>", json),
    path("sync/<token>", sync),
    path("orm/<token>", orm),
    path("session/<token>", session),
    path("later/<token>", later),
    path("fail/<token>", fail),
    path("fail-sync/<token>", fail_sync),
    path("slow/<token>", slow),
    path("stream/<int:events>/<token>", stream),
    path("stream-sync/<token>", stream_sync),
    path("stream-fails/<token>", stream_fails),
    path("upload/<token>", upload),
]
