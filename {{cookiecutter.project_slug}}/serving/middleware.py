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


accepted = re.compile(r"[A-Za-z0-9._-]{1,128}").fullmatch


def identify(request: HttpRequest) -> str:
    """Bind the request's id to all that is logged from here on; return it."""
    request_id: str = request.META.get("HTTP_X_REQUEST_ID", "")
    if not accepted(request_id):
        request_id = f"{random.getrandbits(128):032x}"
    # A server may run the next request of a connection in a copy of this context.
    structlog.contextvars.clear_contextvars()
    # Never unbound: what is logged after the response started belongs to it too.
    structlog.contextvars.bind_contextvars(request_id=request_id)
    return request_id


class LogMiddleware:
    """Bind X-Request-ID to each log line of the request and send it back."""

    sync_capable = False
    async_capable = True

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> HttpResponseBase:
        request_id = identify(request)
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
        metrics = None
        if self.server_timing:
            metrics = timing.Metrics()
            timing.current.set(metrics)
        try:
            response = await self.get_response(request)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task and not task.cancelling():
                # The view's own: nobody cancelled the request.
                log_timing(request, 500, start, "failed")
            elif left(request):
                log_timing(request, 499, start, "disconnected")
            else:
                log_timing(request, None, start, "cancelled")
            raise
        if metrics:
            metrics.send(response, time.perf_counter() - start)
        if isinstance(response, StreamingHttpResponse):
            self.watch(request, response, start)
        else:
            log_timing(request, response.status_code, start, "completed")
        return response

    def watch(
        self, request: HttpRequest, response: StreamingHttpResponse, start: float
    ) -> None:
        def log(outcome: str, first_byte: float | None) -> None:
            if first_byte is not None:
                first_byte = round(first_byte - start, 6)
            log_timing(request, response.status_code, start, outcome, first_byte)

        stream = AsyncStream if response.is_async else Stream
        response.streaming_content = stream(request, response, log)


def log_timing(
    request: HttpRequest,
    status: int | None,
    start: float,
    outcome: str,
    first_byte: float | None = None,
) -> None:
    duration = time.perf_counter() - start
    level = logging.INFO
    if request.path_info in health.PROBES:
        # Several in a minute, for as long as the service runs.
        level = logging.DEBUG if status == 200 else logging.WARNING
    if not timing_logger.isEnabledFor(level):
        return
    # As info() does, but without a walk up the stack for who called it.
    record = timing_logger.makeRecord(
        timing_logger.name,
        level,
        __file__,
        0,
        f"Request took {duration:.4f} seconds",
        (),
        None,
    )
    fields = vars(record)
    fields["method"] = request.method
    fields["path"] = request.path
    if request.resolver_match is not None:
        fields["route"] = request.resolver_match.route
    if status is not None:
        fields["status"] = status
    fields["duration"] = round(duration, 6)
    if first_byte is not None:
        fields["first_byte"] = first_byte
    fields["outcome"] = outcome
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
        self.make_bytes = response.make_bytes
        length = response.headers.get("Content-Length", "")
        self.length = int(length) if length.isdigit() else -1
        # Django 5.2 closes the response outside of the task that served the request.
        self.context = copy_context()
        self.log: Callable[[str, float | None], None] | None = log
        # Of the handler, which knows what was sent; this knows what was to be sent.
        self.client = getattr(request, "scope", {}).get("serving.client")
        self.request = request
        self.sent = 0
        self.first_byte: float | None = None
        self.ended = False
        self.failed = False

    def close(self) -> None:
        """The first call counts."""
        log, self.log = self.log, None
        if log is None:
            return
        first_byte, sent, ended = self.first_byte, self.sent, self.ended
        if self.client is not None:
            first_byte, sent = self.client.first_byte, self.client.sent
            ended = self.client.ended
        # A client may leave as soon as it has all that was announced.
        if not self.failed and (ended or sent == self.length):
            outcome = "completed"
        elif self.failed:
            outcome = "failed"
        else:
            outcome = "disconnected" if left(self.request) else "cancelled"
        self.context.run(log, outcome, first_byte)

    def pass_on(self, part: object) -> bytes:
        content: bytes = self.make_bytes(part)
        self.first_byte = self.first_byte or time.perf_counter()
        self.sent += len(content)
        return content


class Stream(Watched):
    def __iter__(self) -> Iterator[bytes]:
        try:
            for part in self.content:
                yield self.pass_on(part)
            self.ended = True
        except Exception:
            self.failed = True
            raise


class AsyncStream(Watched):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in self.content:
                yield self.pass_on(part)
            self.ended = True
        except Exception:
            self.failed = True
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
