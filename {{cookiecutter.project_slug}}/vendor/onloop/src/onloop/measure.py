"""How often a request leaves the event loop, and for which middleware: by making one.

A thread hop is one call through sync_to_async() or async_to_sync().
"""

import asyncio
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple
from unittest.mock import patch
from urllib.parse import unquote

from asgiref.sync import AsyncToSync, SyncToAsync
from django.conf import settings
from django.core.handlers.base import BaseHandler
from django.core.handlers.exception import convert_exception_to_response

from onloop._chain import inspect_chain
from onloop._hops import RUNNERS, layers, line_of, what_is_called
from onloop.handler import ASGIHandler
from onloop.inlining import CONVERT_CODE, CONVERTS_EXCEPTIONS, RUN_CODE

# By which name the code around a middleware knows it; its own methods say "self".
NAMES = {
    CONVERTS_EXCEPTIONS: "get_response",
    CONVERT_CODE: "get_response",
    convert_exception_to_response(lambda request: None).__code__: "get_response",  # type: ignore
    RUN_CODE: "middleware",
}


class ThreadHop(NamedTuple):
    # As in settings.MIDDLEWARE; None is the view, or what Django does around it all.
    middleware: str | None
    what: str
    where: str


class MeasuredMiddleware(NamedTuple):
    path: str
    execution: str
    thread_hops: list[ThreadHop]


class Measurement(NamedTuple):
    path: str
    status: int | None
    thread_hops: list[ThreadHop]
    middleware: list[MeasuredMiddleware]
    # Of the view, and of what Django does around it all.
    other: list[ThreadHop]


class Link(NamedTuple):
    path: str | None
    middleware: Any
    is_async: bool
    # Of the one because of which Django calls it in a thread.
    thread_path: str | None


class MeasuredHandler(ASGIHandler):
    def load_middleware(self, is_async: bool = False) -> None:
        # Innermost first: nothing, the view, the middlewares.
        self.links = [Link(None, object(), is_async, None)]
        self._path: str | None = None
        super().load_middleware(is_async)

    def adapt_method_mode(
        self, is_async: bool, method: Any, *args: Any, **kwargs: Any
    ) -> Any:
        # Before each middleware is made, with what that will call; and at last with the
        # outermost. It is the same again when a middleware raised MiddlewareNotUsed.
        if args:
            inner, middleware = self.links[-1], method.__wrapped__
            if middleware is not inner.middleware:
                # Synchronous neighbours share a thread, because of the innermost.
                path = self._path if inner.is_async else inner.thread_path
                self.links.append(Link(self._path, middleware, args[0], path))
            self._path = kwargs.get("name", "").removeprefix("middleware ")
        return super().adapt_method_mode(is_async, method, *args, **kwargs)


async def measure(path: str = "/") -> Measurement:
    """Serve a GET of the path, which may have a query string, and count its hops."""
    # Not on the loop, for middlewares may read files when they are made.
    handler = await asyncio.to_thread(MeasuredHandler)
    status: int | None = None
    messages: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
    messages.put_nowait({"type": "http.request"})

    async def send(message: Mapping[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)
        if message.get("body") and message.get("more_body"):
            # A stream, which might have no end.
            messages.put_nowait({"type": "http.disconnect"})

    try:
        with count_thread_hops(handler.links) as hops:
            await handler(scope_of(path), messages.get, send)
    finally:
        await handler.threads.shutdown()
    used = {link.path for link in handler.links}
    middleware = [
        MeasuredMiddleware(
            info.path,
            info.execution if info.path in used else "not used",
            [hop for hop in hops if hop.middleware == info.path],
        )
        for info in inspect_chain()
    ]
    other = [hop for hop in hops if hop.middleware is None]
    return Measurement(path, status, hops, middleware, other)


def scope_of(path: str) -> dict[str, Any]:
    path, _, query = path.partition("?")
    hosts = (host.lstrip(".") for host in settings.ALLOWED_HOSTS if host != "*")
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "https" if settings.SECURE_SSL_REDIRECT else "http",
        "path": unquote(path),
        "query_string": query.encode(),
        "headers": [(b"host", next(hosts, "localhost").encode())],
        "client": ("127.0.0.1", 0),
    }


@contextmanager
def count_thread_hops(links: Sequence[Link] = ()) -> Iterator[list[ThreadHop]]:
    """Gives the hops that the process makes during the block."""
    hops: list[ThreadHop] = []

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
            hops.append(describe(self, links))
            return call(self, *args, **kwargs)

        return __call__

    with (
        patch.object(SyncToAsync, "__call__", counted(SyncToAsync.__call__)),
        patch.object(AsyncToSync, "__call__", counted(AsyncToSync.__call__)),
    ):
        yield hops


def describe(wrapper: Any, links: Sequence[Link]) -> ThreadHop:
    called = list(layers(wrapper))
    caller, where = find_caller(links)
    owner = find([getattr(call, "__self__", None) for call in called], links) or caller
    path = owner and owner.path
    if not isinstance(wrapper, AsyncToSync) and (link := find(called, links)):
        path = link.thread_path
    return ThreadHop(path, what_is_called(wrapper), where)


def find(objects: Sequence[Any], links: Sequence[Link]) -> Link | None:
    found = (link for link in links if any(link.middleware is o for o in objects))
    return next(found, None)


def find_caller(links: Sequence[Link]) -> tuple[Link | None, str]:
    """The middleware at work, if it is one, and the line that calls."""
    frame: FrameType | None = sys._getframe(3)
    link = None
    where = in_django = ""
    while frame is not None and link is None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package in RUNNERS:
            break
        if package == "django":
            in_django = in_django or line_of(frame)
        else:
            where = where or line_of(frame)
        this = frame.f_locals.get(NAMES.get(frame.f_code, "self"))
        if isinstance(getattr(this, "__self__", this), BaseHandler):
            break
        link = find([this], links)
        frame = frame.f_back
    return link, where or in_django
