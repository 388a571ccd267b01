"""Serve a request, and count how often each middleware leaves the event loop.

A thread hop is one call through sync_to_async() or async_to_sync().
"""

import asyncio
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NamedTuple
from unittest.mock import patch
from urllib.parse import unquote

from asgiref.sync import AsyncToSync, SyncToAsync
from django.conf import settings
from django.core.handlers.base import BaseHandler
from django.core.handlers.exception import convert_exception_to_response

from onloop._chain import inspect_chain
from onloop._hops import RUNNERS, layers, line_of, preceded, what_is_called
from onloop.handler import ASGIHandler
from onloop.health import load_routes
from onloop.inlining import CONVERT_CODE, CONVERTS_EXCEPTIONS, RUN_CODE

# The variable for the middleware in code around it; in its own methods it is "self".
NAMES = {
    CONVERTS_EXCEPTIONS: "get_response",
    CONVERT_CODE: "get_response",
    convert_exception_to_response(lambda request: None).__code__: "get_response",  # type: ignore
    RUN_CODE: "middleware",
}


class ThreadHop(NamedTuple):
    # As in settings.MIDDLEWARE; None for the view, and for Django's code around it all.
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
    # The hops of the view, and of Django's code around it all.
    other: list[ThreadHop]


class ChainEntry(NamedTuple):
    path: str | None
    middleware: Any
    is_async: bool
    # The path of the middleware because of which Django calls this one in a thread.
    thread_path: str | None


class MeasuredHandler(ASGIHandler):
    def load_middleware(self, is_async: bool = False) -> None:
        # Innermost first: nothing, the view, the middlewares.
        self.chain = [ChainEntry(None, object(), is_async, None)]
        self._path: str | None = None
        super().load_middleware(is_async)

    def adapt_method_mode(
        self, is_async: bool, method: Any, *args: Any, **kwargs: Any
    ) -> Any:
        # Called before each middleware is created, with the one that it will call, and
        # finally with the outermost; again with the same one after MiddlewareNotUsed.
        if args:
            inner, middleware = self.chain[-1], method.__wrapped__
            if middleware is not inner.middleware:
                # Synchronous neighbours share a thread, because of the innermost.
                path = self._path if inner.is_async else inner.thread_path
                self.chain.append(ChainEntry(self._path, middleware, args[0], path))
            self._path = kwargs.get("name", "").removeprefix("middleware ")
        return super().adapt_method_mode(is_async, method, *args, **kwargs)


async def measure(path: str = "/") -> Measurement:
    """Serve a GET of the path, which may have a query string, and count its hops."""
    # The panel in the URLconf may wrap the methods that are wrapped below, and has to be
    # first. What is wrong with a URLconf, Django answers with 500.
    with suppress(Exception):
        await asyncio.to_thread(load_routes)
    # Not on the loop, because middleware may read files when it is created.
    handler = await asyncio.to_thread(MeasuredHandler)
    status: int | None = None
    messages: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
    messages.put_nowait({"type": "http.request"})

    async def send(message: Mapping[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)
        if message.get("body") and message.get("more_body"):
            # A stream, which may never end.
            messages.put_nowait({"type": "http.disconnect"})

    try:
        with count_thread_hops(handler.chain) as hops:
            await handler(scope_of(path), messages.get, send)
    finally:
        await handler.threads.shutdown()
    used = {entry.path for entry in handler.chain}
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
def count_thread_hops(chain: Sequence[ChainEntry] = ()) -> Iterator[list[ThreadHop]]:
    """Give a list to which each thread hop of the process is added in the block."""
    hops: list[ThreadHop] = []

    def count(call: Any) -> None:
        hops.append(describe(call, chain))

    # Called at the time of the call: a coroutine function would not know its line.
    to_thread = preceded(SyncToAsync.__call__, count, is_async=False)
    to_loop = preceded(AsyncToSync.__call__, count, is_async=False)
    with (
        patch.object(SyncToAsync, "__call__", to_thread),
        patch.object(AsyncToSync, "__call__", to_loop),
    ):
        yield hops


def describe(wrapper: Any, chain: Sequence[ChainEntry]) -> ThreadHop:
    called = list(layers(wrapper))
    caller, where = find_caller(chain)
    owner = find([getattr(call, "__self__", None) for call in called], chain) or caller
    path = owner and owner.path
    if not isinstance(wrapper, AsyncToSync) and (entry := find(called, chain)):
        path = entry.thread_path
    return ThreadHop(path, what_is_called(wrapper), where)


def find(objects: Sequence[Any], chain: Sequence[ChainEntry]) -> ChainEntry | None:
    found = (entry for entry in chain if any(entry.middleware is o for o in objects))
    return next(found, None)


def find_caller(chain: Sequence[ChainEntry]) -> tuple[ChainEntry | None, str]:
    """The middleware that makes the call, if one does, and the line of the call."""
    frame: FrameType | None = sys._getframe(4)
    entry = None
    where = in_django = ""
    while frame is not None and entry is None:
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
        entry = find([this], chain)
        frame = frame.f_back
    return entry, where or in_django
