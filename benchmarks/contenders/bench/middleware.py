import logging
import time
from collections.abc import Awaitable, Callable

from asgiref.sync import markcoroutinefunction
from django.http import HttpRequest, HttpResponseBase

logger = logging.getLogger("timing")


class TimingMiddleware:
    """Used on `startproject`; the generated service brings its own."""

    sync_capable = False
    async_capable = True

    def __init__(
        self, get_response: Callable[[HttpRequest], Awaitable[HttpResponseBase]]
    ) -> None:
        self.get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> HttpResponseBase:
        start = time.perf_counter()
        response = await self.get_response(request)
        if response.status_code == 200:
            response.headers["X-Status"] = "OK"
        logger.info("Request took %.4f seconds", time.perf_counter() - start)
        return response
