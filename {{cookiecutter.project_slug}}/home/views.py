import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.shortcuts import render


async def index(request: HttpRequest) -> HttpResponse:
    return render(request, "home/index.html", {"name": settings.PROJECT_NAME})


async def hello(request: HttpRequest, name: str) -> JsonResponse:
    return JsonResponse({"hello": name})


async def icon(request: HttpRequest) -> HttpResponse:
    return render(request, "home/icon.svg", content_type="image/svg+xml")


async def ticks(request: HttpRequest) -> StreamingHttpResponse:
    """Server-sent events, one a second, until the client disconnects."""
    headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
    return StreamingHttpResponse(clock(), headers=headers)


async def clock() -> AsyncIterator[str]:
    while True:
        yield f"data: {datetime.now(UTC).isoformat(timespec='seconds')}\n\n"
        await asyncio.sleep(1)
