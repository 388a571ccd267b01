"""Wait for another service, in the three ways that a middleware can."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable

from django.http import HttpRequest, HttpResponseBase
from django.utils.decorators import async_only_middleware, sync_only_middleware

SECONDS = int(os.environ["BENCH_DELAY_MS"]) / 1000

AsyncHandler = Callable[[HttpRequest], Awaitable[HttpResponseBase]]
SyncHandler = Callable[[HttpRequest], HttpResponseBase]


@async_only_middleware
def awaited(get_response: AsyncHandler) -> AsyncHandler:
    async def middleware(request: HttpRequest) -> HttpResponseBase:
        await asyncio.sleep(SECONDS)
        return await get_response(request)

    return middleware


@async_only_middleware
def blocking(get_response: AsyncHandler) -> AsyncHandler:
    async def middleware(request: HttpRequest) -> HttpResponseBase:
        time.sleep(SECONDS)  # noqa: ASYNC251 - the mistake that is measured
        return await get_response(request)

    return middleware


@sync_only_middleware
def synchronous(get_response: SyncHandler) -> SyncHandler:
    def middleware(request: HttpRequest) -> HttpResponseBase:
        time.sleep(SECONDS)
        return get_response(request)

    return middleware
