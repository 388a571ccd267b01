"""For path("__requests__/", include("onloop.panel.urls")); empty without DEBUG."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextvars import copy_context
from pathlib import Path
from typing import Any

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import URLPattern, path

from onloop._compat import uvicorn_server
from onloop.panel import recorder


def url(route: str, view: Callable[..., HttpResponseBase], name: str) -> URLPattern:
    async def checked(request: HttpRequest, **kwargs: Any) -> HttpResponseBase:
        # Raises DisallowedHost, even if no middleware checks the host.
        request.get_host()
        response = view(request, **kwargs)
        response.headers["Cache-Control"] = "no-store"
        return response

    return path(route, checked, name=name)


def file(route: str, name: str, content_type: str) -> URLPattern:
    content = Path(__file__).with_name(name).read_bytes()
    return url(route, lambda _: HttpResponse(content, content_type), name)


def events(request: HttpRequest) -> HttpResponseBase:
    last = request.headers.get("Last-Event-ID") or request.GET.get("after", "")
    content = stream(int(last) if last.isdecimal() else 0)
    return StreamingHttpResponse(content, content_type="text/event-stream")


async def stream(last: int) -> AsyncIterator[str]:
    yield "retry: 500\n\n"
    while not server_stops():
        for trace in list(recorder.latest):
            if trace.number > last:
                last = trace.number
                yield f"id: {last}\ndata: {json.dumps(trace.as_data())}\n\n"
        await asyncio.sleep(0.2)


def server_stops() -> bool:
    """uvicorn waits for open streams but does not tell them that it is stopping."""
    return getattr(uvicorn_server(), "should_exit", False)


def log(request: HttpRequest, number: int) -> HttpResponseBase:
    for trace in recorder.latest:
        if trace.number == number:
            return HttpResponse(copy_context().run(trace.log), "text/plain")
    raise Http404


app_name = recorder.APP_NAME
urlpatterns: list[URLPattern] = []
if settings.DEBUG:
    recorder.start()
    urlpatterns += [
        file("", "panel.html", "text/html; charset=utf-8"),
        file("panel.css", "panel.css", "text/css; charset=utf-8"),
        file("panel.js", "panel.js", "text/javascript; charset=utf-8"),
        file("panel.svg", "panel.svg", "image/svg+xml"),
        url("events", events, "events"),
        url("<int:number>/log", log, "log"),
    ]
