"""The service's own middlewares: async only, no thread, no I/O."""

import asyncio
import logging
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import copy_context

import structlog
from asgiref.sync import markcoroutinefunction
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured, MiddlewareNotUsed
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils.decorators import async_only_middleware

from serving import health, timing
from serving.environment import CONDITIONS, parse_header

GetResponse = Callable[[HttpRequest], Awaitable[HttpResponseBase]]

request_logger = logging.getLogger("serving.request")
timing_logger = logging.getLogger("serving.timing")


class LogMiddleware:
    """Bind X-Request-ID to each log line of the request and send it back."""

    sync_capable = False
    async_capable = True
    accepted = re.compile(r"[A-Za-z0-9._-]{1,128}").fullmatch

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> HttpResponseBase:
        request_id = request.META.get("HTTP_X_REQUEST_ID", "")
        if not self.accepted(request_id):
            request_id = f"{random.getrandbits(128):032x}"
        # Never unbound: each request has a context of its own, and what is logged
        # after the response started belongs to the request too.
        structlog.contextvars.bind_contextvars(request_id=request_id)
        request_logger.debug("Before response")
        response = await self.get_response(request)
        request_logger.debug("After response")
        response.headers["X-Request-ID"] = request_id
        return response


class TimingMiddleware:
    """Log how long a request took, a stream to its last byte; send Server-Timing."""

    sync_capable = False
    async_capable = True

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response
        self.server_timing = settings.SERVER_TIMING == "always" or (
            settings.SERVER_TIMING == "debug" and settings.DEBUG
        )
        if self.server_timing and settings.DEBUG:
            timing.watch_queries()
        markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> HttpResponseBase:
        start = time.perf_counter()
        metrics = timing.Metrics() if self.server_timing else None
        timing.current.set(metrics)
        try:
            response = await self.get_response(request)
        except asyncio.CancelledError:
            if left(request):
                self.log(request, 499, start, "disconnected")
            else:
                self.log(request, None, start, "cancelled")
            raise
        if metrics:
            metrics.send(response, time.perf_counter() - start)
        if isinstance(response, StreamingHttpResponse):
            self.watch(request, response, start)
        else:
            self.log(request, response.status_code, start, "completed")
        return response

    def watch(
        self, request: HttpRequest, response: StreamingHttpResponse, start: float
    ) -> None:
        def log(outcome: str, first_byte: float | None) -> None:
            if first_byte is not None:
                first_byte = round(first_byte - start, 6)
            self.log(request, response.status_code, start, outcome, first_byte)

        stream = _AsyncStream if response.is_async else _Stream
        response.streaming_content = stream(request, response, log)

    def log(
        self,
        request: HttpRequest,
        status: int | None,
        start: float,
        outcome: str,
        first_byte: float | None = None,
    ) -> None:
        duration = time.perf_counter() - start
        match = request.resolver_match
        fields = {
            "method": request.method,
            "path": request.path,
            "route": None if match is None else match.route,
            "status": status,
            "duration": round(duration, 6),
            "first_byte": first_byte,
            "outcome": outcome,
        }
        level = logging.INFO
        if request.path_info in health.PROBES:
            # Several in a minute, for as long as the service runs.
            level = logging.DEBUG if status == 200 else logging.WARNING
        if timing_logger.isEnabledFor(level):
            # As info() does, but without a walk up the stack for who called it.
            record = timing_logger.makeRecord(
                timing_logger.name,
                level,
                __file__,
                0,
                f"Request took {duration:.4f} seconds",
                (),
                None,
                extra={
                    key: value for key, value in fields.items() if value is not None
                },
            )
            timing_logger.handle(record)


def left(request: HttpRequest) -> bool:
    """Whether the client did, rather than the server stop."""
    client = getattr(request, "scope", {}).get("serving.client")
    # Django's own handler does not tell; that the client left is likelier.
    return client is None or bool(client.left)


class Watched:
    """The content of a streaming response; Django calls close() when it is over."""

    def __init__(
        self,
        request: HttpRequest,
        response: StreamingHttpResponse,
        log: Callable[[str, float | None], None],
    ) -> None:
        # Through streaming_content, closing would not reach the view's generator.
        self.content = vars(response)["_iterator"]
        self.length = int(response.headers.get("Content-Length", -1))
        # Django 5.2 closes the response outside of the task that served the request.
        self.context = copy_context()
        self.log = log
        self.sent = 0
        self.first_byte: float | None = None
        self.request = request
        self.outcome = ""

    def close(self) -> None:
        # A client may leave as soon as it has all that was announced.
        if self.sent == self.length:
            self.outcome = "completed"
        elif not self.outcome:
            self.outcome = "disconnected" if left(self.request) else "cancelled"
        self.context.run(self.log, self.outcome, self.first_byte)

    def pass_on(self, part: str | bytes) -> str | bytes:
        self.first_byte = self.first_byte or time.perf_counter()
        self.sent += len(part)
        return part


class _Stream(Watched):
    def __iter__(self) -> Iterator[str | bytes]:
        try:
            for part in self.content:
                yield self.pass_on(part)
            self.outcome = "completed"
        except Exception:
            self.outcome = "failed"
            raise


class _AsyncStream(Watched):
    async def __aiter__(self) -> AsyncIterator[str | bytes]:
        try:
            async for part in self.content:
                yield self.pass_on(part)
            self.outcome = "completed"
        except Exception:
            self.outcome = "failed"
            raise
        finally:
            # Or the garbage collector would, later and in another task.
            if hasattr(self.content, "aclose"):
                await self.content.aclose()


class HeaderMiddleware:
    """Send RESPONSE_HEADER when RESPONSE_HEADER_WHEN holds and the view sent none."""

    sync_capable = False
    async_capable = True

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response
        try:
            self.name, self.value = parse_header(settings.RESPONSE_HEADER)
            self.statuses = CONDITIONS[settings.RESPONSE_HEADER_WHEN]
        except ValueError as error:
            raise ImproperlyConfigured(
                f"RESPONSE_HEADER={settings.RESPONSE_HEADER!r} is refused: {error}."
            ) from None
        except KeyError:
            raise ImproperlyConfigured(
                f"RESPONSE_HEADER_WHEN={settings.RESPONSE_HEADER_WHEN!r} is refused: "
                f"use one of {', '.join(CONDITIONS)}."
            ) from None
        markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = await self.get_response(request)
        if response.status_code in self.statuses:
            response.headers.setdefault(self.name, self.value)
        return response


@async_only_middleware
def deadline(get_response: GetResponse) -> GetResponse:
    """Answer 504 when REQUEST_TIMEOUT passes before the response starts."""
    seconds = settings.REQUEST_TIMEOUT
    if seconds is None:
        raise MiddlewareNotUsed

    async def middleware(request: HttpRequest) -> HttpResponseBase:
        try:
            async with asyncio.timeout(seconds):
                return await get_response(request)
        except TimeoutError:
            # Only the deadline: what a view raises is a response by now.
            return HttpResponse(
                f"No answer within {seconds:g} seconds.\n",
                status=504,
                content_type="text/plain",
            )

    return middleware
