import asyncio
import time
from collections.abc import AsyncIterator

from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    JsonResponse,
    StreamingHttpResponse,
)

from .models import Item

PAGE = f"""<!doctype html>
<html lang="en">
<title>A page</title>
<h1>A page</h1>
{"<p>It has a few paragraphs, and nothing that has to be loaded besides.</p>" * 20}
"""


async def json_view(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"hello": "world"})


async def page_view(request: HttpRequest) -> HttpResponse:
    return HttpResponse(PAGE)


def sync_view(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"hello": "world"})


def slow_view(request: HttpRequest) -> JsonResponse:
    time.sleep(0.1)
    return JsonResponse({"hello": "world"})


async def stream_view(request: HttpRequest) -> StreamingHttpResponse:
    async def events() -> AsyncIterator[str]:
        yield "data: first\n\n"
        await asyncio.sleep(3600)

    return StreamingHttpResponse(events(), content_type="text/event-stream")


async def item_view(request: HttpRequest, pk: int) -> JsonResponse:
    try:
        item = await Item.objects.aget(pk=pk)
    except Item.DoesNotExist as missing:
        raise Http404 from missing
    return JsonResponse({"id": item.pk, "name": item.name})
