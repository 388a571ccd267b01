"""The service's own middlewares: async only, no thread, no I/O."""

import asyncio
import logging
import random
import re
import time
from functools import partial

import structlog
from asgiref.sync import markcoroutinefunction
from django.conf import settings
from django.core.exceptions import MiddlewareNotUsed
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.decorators import async_only_middleware
from onloop import server_timing
from onloop.logging import bind_fields, log_fields
from onloop.outcome import RequestEnd, observe, request_fields, upload_seconds

from serving.errors import error_response
from serving.header import CONDITIONS, parse_header
from serving.health import PROBES, GetResponse

request_logger = logging.getLogger("serving.request")
timing_logger = logging.getLogger("serving.timing")
is_request_id = re.compile(r"[A-Za-z0-9._-]{1,128}").fullmatch


def bind_request_id(request: HttpRequest) -> str:
    """Add the request's id to every line that is logged from here on, and return it."""
    request_id: str = request.META.get("HTTP_X_REQUEST_ID", "")
    if not is_request_id(request_id):
        request_id = f"{random.getrandbits(128):032x}"
        request.META["HTTP_X_REQUEST_ID"] = request_id
    # A server may handle the next request of a connection in a copy of this context.
    structlog.contextvars.clear_contextvars()
    bind_fields(request_id=request_id)
    return request_id


class LogMiddleware:
    """Bind X-Request-ID to each log line of the request and send it back."""

    sync_capable = False
    async_capable = True

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> HttpResponseBase:
        request_id = bind_request_id(request)
        request_logger.debug("Before response")
        response = await self.get_response(request)
        request_logger.debug("After response")
        response.headers["X-Request-ID"] = request_id
        return response

    def process_abort(self, request: HttpRequest, *args: object) -> None:
        bind_request_id(request)


class TimingMiddleware:
    """Log how long a request took, a stream to its last byte; send Server-Timing."""

    sync_capable = False
    async_capable = True

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response
        sent = {"debug": settings.DEBUG, "always": True, "never": False}
        self.server_timing = sent[settings.SERVER_TIMING]
        if self.server_timing and settings.DEBUG:
            server_timing.watch_queries()
        markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> HttpResponseBase:
        start = time.perf_counter()
        metrics = server_timing.collect() if self.server_timing else None
        with observe(request, partial(self.log, request, start)) as observation:
            response = observation.response = await self.get_response(request)
        if metrics:
            metrics.send(response, time.perf_counter() - start)
        return response

    def log(self, request: HttpRequest, start: float, end: RequestEnd) -> None:
        level = logging.INFO
        if request.path_info in PROBES:
            # Probes arrive several times a minute for as long as the service runs.
            level = logging.DEBUG if end.status == 200 else logging.WARNING
        fields = request_fields(request, start, end)
        message = f"Request took {fields['duration']:.4f} seconds"
        log_fields(timing_logger, level, message, fields)

    # The request ended while its body was arriving: no middleware was called.
    process_abort = log


class HeaderMiddleware:
    """Send RESPONSE_HEADER if RESPONSE_HEADER_WHEN applies, unless the view set it."""

    sync_capable = False
    async_capable = True

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response
        self.name, self.value = parse_header(settings.RESPONSE_HEADER)
        self.statuses = CONDITIONS[settings.RESPONSE_HEADER_WHEN]
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
            async with asyncio.timeout(seconds - upload_seconds(request)):
                return await get_response(request)
        except TimeoutError:
            # The deadline's own: what a view raises has become a response by now.
            return error_response(request, status=504)

    return middleware
