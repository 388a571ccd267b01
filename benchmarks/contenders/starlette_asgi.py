import asyncio
import logging
import time
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
logger = logging.getLogger("timing")


class TimingMiddleware:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_header(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                message["headers"].append((b"x-status", b"OK"))
            await send(message)

        start = time.perf_counter()
        await self.app(scope, receive, send_with_header)
        logger.info("Request took %.4f seconds", time.perf_counter() - start)


async def json_view(request: Request) -> JSONResponse:
    return JSONResponse({"hello": "world"})


async def stream_view(request: Request) -> StreamingResponse:
    async def events() -> AsyncIterator[str]:
        yield "data: first\n\n"
        await asyncio.sleep(3600)

    return StreamingResponse(events(), media_type="text/event-stream")


app = Starlette(
    routes=[Route("/json", json_view), Route("/stream", stream_view)],
    middleware=[Middleware(TimingMiddleware)],
)
