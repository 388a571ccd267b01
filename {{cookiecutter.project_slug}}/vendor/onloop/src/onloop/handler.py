"""Django's ASGI handler, with a thread only on demand."""

import asyncio
import gc
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextvars import Context, copy_context
from functools import cache, partial
from inspect import unwrap
from io import BytesIO
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core import asgi as django_asgi
from django.core.cache import caches, close_caches
from django.core.cache.backends.base import BaseCache
from django.core.exceptions import RequestAborted
from django.core.handlers import asgi, base
from django.core.handlers.asgi import ASGIHandler as DjangoASGIHandler
from django.core.handlers.asgi import ASGIRequest
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

from onloop import logging as onloop_logging
from onloop import outcome
from onloop._compat import defined_in
from onloop.inlining import InliningHandler
from onloop.outcome import (
    Delivery,
    DisconnectWatcher,
    LateBody,
    LostBody,
    Refusal,
    RequestEnd,
    Send,
    send_last,
)
from onloop.threads import LIMIT, NoThread, RequestThread, ThreadPool

Receive = Callable[[], Awaitable[Mapping[str, Any]]]

logger = logging.getLogger("onloop.handler")

# Seconds that requests which the server has cancelled have to finish.
END_TIMEOUT = 0.5
# Seconds for the whole shutdown, which a server begins after its own graceful timeout.
SHUTDOWN_TIMEOUT = 0.95
# Once in each process: a later start would keep the garbage that is there by then.
freeze = cache(gc.freeze)
EMPTY_BODY = {"type": "http.request", "body": b"", "more_body": False}
# ThreadPool does the work of the first two in each thread, finish_request() that of the
# others.
DJANGO_RECEIVERS = [
    *(reset_queries, close_old_connections),
    *(base.reset_urlconf, close_caches),
]

# Instrumentations such as Sentry replace these, perhaps before this module is imported.
# Then the handler calls what they put there.
CALL: Any = DjangoASGIHandler.__call__
GET_RESPONSE: Any = DjangoASGIHandler.get_response_async
DJANGO_CALL = CALL if defined_in(CALL, asgi) else None
DJANGO_GET_RESPONSE = GET_RESPONSE if defined_in(GET_RESPONSE, base) else None


class ASGIHandler(InliningHandler, DjangoASGIHandler):
    # Not in __init__(), which subclasses such as those in Django's tests do not call.
    @cached_property
    def threads(self) -> ThreadPool:
        return ThreadPool(getattr(settings, "REQUEST_THREADS", LIMIT))

    @cached_property
    def closing_threads(self) -> ThreadPool:
        """One extra thread that closes responses while all others are taken."""
        return ThreadPool(1, wait_seconds=None)

    @cached_property
    def pending_closes(self) -> set[asyncio.Future[None]]:
        """Responses that are still being closed in a thread."""
        return set()

    @cached_property
    def running(self) -> set[Delivery]:
        """The deliveries of requests whose end has not been reported yet."""
        return set()

    @cached_property
    def is_traced(self) -> bool:
        """Whether an instrumentation such as ddtrace replaced Django's function."""
        return not defined_in(django_asgi.get_asgi_application, django_asgi)

    @cached_property
    def request_timeout(self) -> float | None:
        """Seconds from the start of a request until its body must have arrived."""
        return getattr(settings, "REQUEST_TIMEOUT", None)

    @cached_property
    def caches_need_close(self) -> bool:
        backends = (cache["BACKEND"] for cache in settings.CACHES.values())
        return any(
            import_string(backend).close is not BaseCache.close for backend in backends
        )

    async def __call__(
        self, scope: dict[str, Any], receive: Receive, send: Send
    ) -> None:
        if scope["type"] == "lifespan":
            await self.lifespan(receive, send)
        elif scope["type"] == "http" and DjangoASGIHandler.__call__ is DJANGO_CALL:
            await self.handle(scope, receive, send)
        else:
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
            # uvicorn turns it off on Python 3.11.
            asyncio.get_running_loop().set_debug(True)
        # Imported modules are never freed: a collection that skips them is faster.
        # Collecting first would delay the start and free next to nothing.
        freeze()
        onloop_logging.start()

    async def shutdown(self) -> None:
        start = time.monotonic()
        end = start + END_TIMEOUT
        pools = (self.threads, self.closing_threads)
        ending = [asyncio.ensure_future(pool.shutdown()) for pool in pools]
        await self.end_requests(end)
        remaining = max(0, end - time.monotonic())
        await asyncio.wait([*ending, *self.pending_closes], timeout=remaining)
        # Last, so that what was logged until now is written.
        await onloop_logging.stop(start + SHUTDOWN_TIMEOUT - time.monotonic())

    async def end_requests(self, end: float) -> None:
        """Wait until ``end`` for requests that the server has just cancelled."""
        await asyncio.sleep(0)
        while self.running and time.monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for delivery in self.running:
            delivery.notify(abandoned=True)

    async def handle(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        scope[outcome.SCOPE_KEY] = delivery = Delivery()
        if self.is_traced:
            delivery.is_traced, delivery.is_head = True, scope["method"] == "HEAD"
        start = time.perf_counter()
        context = copy_context()
        self.running.add(delivery)
        trace = outcome.start_trace() if outcome.start_trace is not None else None
        reached_middleware = False
        try:
            read = self.read_body
            if self.request_timeout is not None:
                read = self.read_body_in_time
            try:
                body = await read(receive)
                if type(body) is BytesIO and is_body_lost(scope["headers"]):
                    lost = "The server lost the body of a request for an upgrade"
                    self.refuse(delivery, LostBody(lost))
            except TimeoutError:
                body = BytesIO()
                self.refuse(delivery, self.late_body(scope))
                receive = partial(receive_disconnect, receive)
            delivery.upload = time.perf_counter() - start
            with body, self.threads.thread() as thread:
                set_script_prefix(asgi.get_script_prefix(scope))
                if not only_django_listens(request_started, type(self)):
                    try:
                        await request_started.asend(sender=type(self), scope=scope)
                    except NoThread as exc:
                        self.refuse(delivery, exc)
                response: Any
                request, response = self.create_request(scope, body)
                listen = partial(self.listen_for_disconnect, receive)
                completed = False
                reached_middleware = True
                try:
                    with DisconnectWatcher(delivery, listen):
                        if request is not None:
                            if trace is None:
                                response = await self.run_get_response(request)
                            else:
                                get_response = self.run_get_response
                                response = await trace.record(request, get_response)
                        if response.streaming:
                            thread.start_stream()
                        await self.deliver(response, delivery, send, context)
                        delivery.finished = True
                    completed = not delivery.client_disconnected
                finally:
                    # First, because closing may wait for a thread that hangs.
                    self.running.discard(delivery)
                    try:
                        delivery.close()
                    finally:
                        await self.finish_request(thread, request, response, completed)
        except BaseException as exc:
            if reached_middleware:
                raise
            self.running.discard(delivery)
            delivery.client_disconnected = isinstance(exc, RequestAborted)
            end = delivery.end_before_response(exc)
            self.report_abort(scope, start, end, trace)
            if not delivery.client_disconnected:
                raise

    def report_abort(
        self, scope: dict[str, Any], start: float, end: RequestEnd, trace: Any
    ) -> None:
        request, _ = self.create_request(scope, BytesIO())
        if request is not None:
            for hook in self.abort_hooks:
                try:
                    hook(request, start, end)
                except Exception:
                    logger.exception("process_abort() failed")
            if trace is not None:
                trace.keep(request, end, None)

    async def read_body_in_time(self, receive: Receive) -> Any:
        async with asyncio.timeout(self.request_timeout):
            return await self.read_body(receive)

    async def read_body(self, receive: Receive) -> Any:
        message = await receive()
        if message == EMPTY_BODY:
            return BytesIO()
        first = [message]

        async def replayed() -> Mapping[str, Any]:
            return first.pop() if first else await receive()

        return await super().read_body(replayed)

    def refuse(self, delivery: Delivery, refusal: Refusal) -> None:
        """Let resolve_request() raise the refusal, inside the middleware chain."""
        delivery.refusal = refusal
        # Only from the first refusal on, so that other requests do not pay for it.
        vars(self)["resolve_request"] = self.resolve_or_refuse

    def late_body(self, scope: Mapping[str, Any]) -> LateBody:
        late = LateBody(f"No complete request in {self.request_timeout:g} seconds")
        if scope["http_version"].startswith("1"):
            # Otherwise the server would keep reading the body.
            late.headers = {"Connection": "close"}
        return late

    async def finish_request(
        self,
        thread: RequestThread,
        request: ASGIRequest | None,
        response: Any,
        completed: bool,
    ) -> None:
        """Close the request and its response; called once after each request_started.

        ``request`` is None if it could not be parsed, ``response`` if there is none.
        """
        if response is None:
            # Closing it sends request_finished, and closes the request.
            response = HttpResponse()
            response._handler_class = type(self)
            if request is not None:
                response._resource_closers.append(request.close)
        # Only a request that was cut short leaves a call that nobody awaits.
        needs_thread = thread.running or (not completed and thread.inside_async_to_sync)
        for closer in response._resource_closers:
            if not isinstance(getattr(closer, "__self__", None), HttpRequest):
                needs_thread = True
        if needs_thread or self.close_needs_thread(request, response):
            close_task = asyncio.ensure_future(self.close_in_thread(thread, response))
            self.pending_closes.add(close_task)
            close_task.add_done_callback(self.pending_closes.discard)
            # Shielded, since a server may cancel a request more than once.
            await asyncio.shield(close_task)
        else:
            response.close()
        set_urlconf(None)

    async def close_in_thread(
        self, thread: RequestThread, response: HttpResponseBase
    ) -> None:
        close = sync_to_async(self.close_response)
        try:
            if thread.inside_async_to_sync or thread.acquire():
                await close(response)
            else:
                # Closing can neither wait for other requests nor be refused.
                with self.closing_threads.thread():
                    await close(response)
        except NoThread:
            # No thread can be started.
            response.close()

    def close_response(self, response: HttpResponseBase) -> None:
        response.close()
        if self.caches_need_close:
            close_caches()

    def close_needs_thread(self, request: ASGIRequest | None, response: Any) -> bool:
        return bool(
            # HttpResponse.close() sends the signal synchronously, so that it cannot
            # reach an asynchronous receiver from the loop either.
            not only_django_listens(request_finished, type(self))
            or type(response).close is not HttpResponseBase.close
            # HttpRequest.close() closes them.
            or getattr(request, "_files", None)
            or (self.caches_need_close and caches.all(initialized_only=True))
        )

    async def deliver(
        self, response: Any, delivery: Delivery, send: Send, context: Context
    ) -> None:
        content = None if response.streaming else response.content
        if content is None or len(content) > self.chunk_size or delivery.is_traced:
            observed_send = delivery.observe_send(send, context)
            send_all = self.send_stream if content is None else self.send_response
            await send_all(response, observed_send)
            return
        await send(start_message(response))
        delivery.started = True
        body = {"type": "http.response.body", "body": content, "more_body": False}
        await send_last(send, body, context)

    async def send_stream(self, response: HttpResponseBase, send: Send) -> None:
        try:
            await self.send_response(response, send)
        finally:
            # Django closes only its own wrapper, which leaves the end of the view's
            # generator to the garbage collector and another task.
            aclose = getattr(getattr(response, "_iterator", None), "aclose", None)
            if aclose is not None:
                await aclose()

    async def get_response_async(self, request: HttpRequest) -> Any:
        if DjangoASGIHandler.get_response_async is not DJANGO_GET_RESPONSE:
            return await super().get_response_async(request)
        # Unlike Django's method, this may log without a thread.
        set_urlconf(settings.ROOT_URLCONF)
        response = await self._middleware_chain(request)
        response._resource_closers.append(request.close)
        if response.status_code >= 400 and not hasattr(response, "_has_been_logged"):
            message = ("%s: %s", response.reason_phrase, request.path)
            log = partial(log_response, *message, response=response, request=request)
            if onloop_logging.never_blocks("django.request"):
                log()
            else:
                await sync_to_async(log, thread_sensitive=False)()
        return response

    def resolve_or_refuse(self, request: Any) -> Any:
        delivery = outcome.delivery_of(request)
        if delivery and delivery.refusal is not None:
            raise delivery.refusal
        return super().resolve_request(request)


def start_message(response: Any) -> dict[str, Any]:
    """Make the message that Django's send_response() makes, but faster.

    It does not look up the headers by their names.
    """
    headers = [
        (name.encode("ascii"), value.encode("latin1"))
        for name, value in response.headers._store.values()
    ]
    for cookie in response.cookies.values():
        headers.append((b"Set-Cookie", cookie.OutputString().encode("ascii")))
    status = response.status_code
    return {"type": "http.response.start", "status": status, "headers": headers}


def is_body_lost(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request that turned out to be empty announced a body.

    httptools ends a request that asks for an upgrade at its headers, even if uvicorn
    declines the upgrade.
    """
    found = dict(headers)
    return b"upgrade" in found and (
        found.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in found
    )


async def receive_disconnect(receive: Receive) -> Mapping[str, Any]:
    while (message := await receive())["type"] == "http.request":
        pass
    return message


def only_django_listens(signal: Signal, sender: type) -> bool:
    """Whether the signal has no receivers other than Django's.

    If so, its send() and asend() return at once until another receiver connects.
    """
    cache = signal.sender_receivers_cache
    if cache.get(sender) is NO_RECEIVERS:
        return True
    before = signal.receivers.copy()
    synchronous, asynchronous = signal._live_receivers(sender)
    # Sentry wraps each receiver, including Django's.
    if asynchronous or any(unwrap(r) not in DJANGO_RECEIVERS for r in synchronous):
        return False
    with signal.lock:
        # connect() and disconnect() clear this.
        if signal.receivers == before:
            cache[sender] = NO_RECEIVERS
    return True
