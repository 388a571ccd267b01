"""The ASGI application: Django's handler, with a thread only on demand.

``django.core.asgi.get_asgi_application()`` in config/asgi.py goes back to stock.
"""

import asyncio
import gc
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from io import BytesIO
from types import FunctionType, ModuleType, TracebackType
from typing import Any, Self

import django
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.cache import caches, close_caches
from django.core.cache.backends.base import BaseCache
from django.core.exceptions import RequestAborted
from django.core.handlers import asgi, base
from django.core.handlers.asgi import ASGIHandler, ASGIRequest, get_script_prefix
from django.core.handlers.base import reset_urlconf
from django.core.signals import request_finished, request_started
from django.db import close_old_connections, reset_queries
from django.dispatch import Signal
from django.dispatch.dispatcher import NO_RECEIVERS
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import set_script_prefix, set_urlconf
from django.utils.functional import cached_property
from django.utils.log import log_response
from django.utils.module_loading import import_string

from serving import health, logs
from serving.inline import InlineViewHooks
from serving.middleware import Watched, identify, log_timing
from serving.threads import RequestThread, ThreadPool

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]

logger = logging.getLogger("serving.handler")

EMPTY_BODY = {"type": "http.request", "body": b"", "more_body": False}
# ThreadPool does the work of the database's receivers in each thread; finish() that
# of the others.
DJANGOS_RECEIVERS = {reset_queries, close_old_connections, reset_urlconf, close_caches}


def original(method: Any, module: ModuleType) -> Any:
    """The method if this module of Django's defines it; None if it was replaced."""
    # What replaces a method copies its name and __module__, but not its globals.
    is_djangos = type(method) is FunctionType and method.__globals__ is vars(module)
    return method if is_djangos else None


# Error reporters and tracers replace these two, and see no request that passes them by.
CALL = original(ASGIHandler.__call__, asgi)
GET_RESPONSE_ASYNC = original(ASGIHandler.get_response_async, base)


def get_asgi_application() -> "Handler":
    django.setup(set_prefix=False)
    return Handler()


class Handler(InlineViewHooks, ASGIHandler):
    # Not in __init__(), which the handler of runserver's static files does without.
    @cached_property
    def threads(self) -> ThreadPool:
        return ThreadPool()

    @cached_property
    def closing(self) -> set[asyncio.Future[None]]:
        """Responses that a thread still closes."""
        return set()

    @cached_property
    def caches_close(self) -> bool:
        backends = (cache["BACKEND"] for cache in settings.CACHES.values())
        return any(
            import_string(backend).close is not BaseCache.close for backend in backends
        )

    async def __call__(
        self, scope: dict[str, Any], receive: Receive, send: Send
    ) -> None:
        if scope["type"] == "http" and ASGIHandler.__call__ is CALL:
            await self.handle(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self.lifespan(receive, send)
        else:
            # Django's calls handle() too.
            await super().__call__(scope, receive, send)

    async def lifespan(self, receive: Receive, send: Send) -> None:
        for phase, run in (("startup", self.startup), ("shutdown", self.shutdown)):
            await receive()
            try:
                await run()
            except Exception as exc:
                logger.exception("The %s failed", phase)
                message = f"The {phase} failed: {exc!r}"
                await send({"type": f"lifespan.{phase}.failed", "message": message})
                return
            await send({"type": f"lifespan.{phase}.complete"})

    async def startup(self) -> None:
        if os.environ.get("PYTHONASYNCIODEBUG"):
            # uvicorn turns it off where Python is older than 3.12.
            asyncio.get_running_loop().set_debug(True)
        # What was imported stays: without it a collection takes some milliseconds less.
        gc.collect()
        gc.freeze()
        logs.start()
        health.start()

    async def shutdown(self) -> None:
        health.stop()
        # Let the requests that the server has just cancelled come to their end.
        await asyncio.sleep(0)
        if self.closing:
            await asyncio.wait(self.closing, timeout=5)
        await self.threads.shutdown()
        # Last, for it writes what was logged until now.
        await asyncio.to_thread(logs.stop)

    async def handle(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        try:
            body = await self.read_body(receive)
        except RequestAborted:
            request, _ = self.create_request(scope, BytesIO())
            if request is not None:
                # No middleware will see it.
                identify(request)
                log_timing(request, 499, start, "disconnected")
            return
        with closing(body), self.threads.thread() as thread:
            set_script_prefix(get_script_prefix(scope))
            if not only_django_listens(request_started, type(self)):
                await self.send_started(scope)
            response: Any
            request, response = self.create_request(scope, body)
            scope["serving.client"] = client = Client(
                lambda: self.listen_for_disconnect(receive)
            )
            outcome = "failed"
            try:
                async with client:
                    if request is not None:
                        response = await self.run_get_response(request)
                    if response.streaming:
                        await self.send_stream(response, client.count(send))
                    else:
                        await self.send_response(response, send)
                    client.ended = True
                outcome = "completed"
            except asyncio.CancelledError:
                outcome = "cancelled"
                raise
            finally:
                if client.left:
                    outcome = "disconnected"
                await self.finish(thread, request, response, outcome)

    async def read_body(self, receive: Receive) -> Any:
        message = await receive()
        if message == EMPTY_BODY:
            return BytesIO()
        first = [message]

        async def replayed() -> Mapping[str, Any]:
            return first.pop() if first else await receive()

        return await super().read_body(replayed)

    async def finish(
        self,
        thread: RequestThread,
        request: ASGIRequest | None,
        response: Any,
        outcome: str,
    ) -> None:
        """Called once for each request that got a request_started.

        ``outcome``: completed, failed, disconnected (the client left) or
        cancelled (by the server). There is no ``request`` if it could not be
        parsed, and no ``response`` if none was made.
        """
        if response is None:
            # Closing it sends request_finished, and closes the request.
            response = HttpResponse()
            response._handler_class = type(self)
            if request is not None:
                response._resource_closers.append(request.close)
        # Only a request that was cut short leaves a call behind that nobody awaits.
        blocks = thread.running or (outcome != "completed" and thread.bridged)
        for closer in response._resource_closers:
            owner = getattr(closer, "__self__", None)
            if isinstance(owner, Watched):
                # Now, and in this task: the thread may be busy until the server ends.
                closer()
            elif not isinstance(owner, HttpRequest):
                blocks = True
        if blocks or self.close_blocks(request, response):
            closing = asyncio.ensure_future(sync_to_async(self.close)(response))
            self.closing.add(closing)
            closing.add_done_callback(self.closing.discard)
            # Shielded, since a server may cancel a request more than once.
            await asyncio.shield(closing)
        else:
            response.close()
        set_urlconf(None)

    def close(self, response: HttpResponseBase) -> None:
        response.close()
        if self.caches_close:
            close_caches()

    async def send_started(self, scope: Mapping[str, Any]) -> None:
        blocking, others = receivers(request_started, type(self))
        if blocking:
            await request_started.asend(sender=type(self), scope=scope)
        else:
            for receiver in others:
                await receiver(signal=request_started, sender=type(self), scope=scope)

    def close_blocks(self, request: ASGIRequest | None, response: Any) -> bool:
        return bool(
            # HttpResponse.close() sends the signal synchronously, so that it cannot
            # reach an asynchronous receiver from the loop either.
            not only_django_listens(request_finished, type(self))
            or type(response).close is not HttpResponseBase.close
            # HttpRequest.close() closes them.
            or getattr(request, "_files", None)
            or (self.caches_close and caches.all(initialized_only=True))
        )

    async def send_stream(self, response: HttpResponseBase, send: Send) -> None:
        try:
            await self.send_response(response, send)
        finally:
            # Django closes only its own wrapper, which leaves the end of the
            # view's generator to the garbage collector and another task.
            aclose = getattr(getattr(response, "_iterator", None), "aclose", None)
            if aclose is not None:
                await aclose()

    async def get_response_async(self, request: HttpRequest) -> Any:
        if ASGIHandler.get_response_async is not GET_RESPONSE_ASYNC:
            return await super().get_response_async(request)
        # Differs from Django's in that it logs without a thread: logs.py writes in one
        # of its own.
        set_urlconf(settings.ROOT_URLCONF)
        chain: Any = self._middleware_chain  # type: ignore[attr-defined]
        response = await chain(request)
        response._resource_closers.append(request.close)
        if response.status_code >= 400:
            log_response(
                "%s: %s",
                response.reason_phrase,
                request.path,
                response=response,
                request=request,
            )
        return response


def only_django_listens(signal: Signal, sender: type) -> bool:
    """Then send() and asend() return at once too, until somebody connects."""
    cache = signal.sender_receivers_cache
    if cache.get(sender) is NO_RECEIVERS:
        return True
    before = signal.receivers.copy()
    blocking, others = receivers(signal, sender)
    if blocking or others:
        return False
    with signal.lock:
        # connect() and disconnect() clear it.
        if signal.receivers == before:
            cache[sender] = NO_RECEIVERS
    return True


def receivers(
    signal: Signal, sender: type
) -> tuple[list[Callable[..., Any]], list[Callable[..., Awaitable[Any]]]]:
    """The synchronous receivers that are not Django's, and the asynchronous."""
    synchronous, asynchronous = signal._live_receivers(sender)
    return [r for r in synchronous if r not in DJANGOS_RECEIVERS], asynchronous


class Client:
    """Cancels the current task if the client leaves during the block.

    The task is cancelled as ``asyncio.timeout()`` does it, so that the
    cleanup of a view runs in the request's own task and context.
    """

    def __init__(self, listen: Callable[[], Awaitable[None]]) -> None:
        self.left = False
        # Of a streaming response: what went out.
        self.sent = 0
        self.first_byte: float | None = None
        self.ended = False
        self._listen = listen
        self._listener: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        self._over = False

    def count(self, send: Send) -> Send:
        async def counted(message: Mapping[str, Any]) -> None:
            await send(message)
            if body := message.get("body"):
                self.first_byte = self.first_byte or time.perf_counter()
                self.sent += len(body)
                # To a client that left, a server sends without waiting: give the
                # listener a chance to hear of it.
                await asyncio.sleep(0)

        return counted

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        # A request that never waits is over before the listener would start.
        self._start = asyncio.get_running_loop().call_soon(self._start_listener)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._over = True
        # It leads to the scope, and the scope to this: a cycle for each request.
        del self._listen
        self._start.cancel()
        if self._listener is not None:
            self._listener.cancel()
        if self._error is None:
            return False
        if self._task.uncancel() > self._cancelling:
            # The server cancelled the request too.
            return False
        cancelled = isinstance(exc, asyncio.CancelledError)
        if not self.left and (exc is None or cancelled):
            raise self._error
        return cancelled

    def _start_listener(self) -> None:
        self._listener = asyncio.ensure_future(self._listen())
        self._listener.add_done_callback(self._heard)

    def _heard(self, listener: "asyncio.Future[None]") -> None:
        if listener.cancelled():
            return
        error = listener.exception()
        if error is not None and not self._over:
            self._error = error
            self.left = isinstance(error, RequestAborted)
            self._task.cancel()
