import logging
import time
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
logger = logging.getLogger("timing")

app = FastAPI()


@app.middleware("http")
async def timing(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    start = time.perf_counter()
    response = await call_next(request)
    if response.status_code == 200:
        response.headers["X-Status"] = "OK"
    logger.info("Request took %.4f seconds", time.perf_counter() - start)
    return response


@app.get("/json")
async def json_view() -> dict[str, str]:
    return {"hello": "world"}


@app.get("/sync")
def sync_view() -> dict[str, str]:
    return {"hello": "world"}


@app.get("/slow")
def slow_view() -> dict[str, str]:
    time.sleep(0.1)
    return {"hello": "world"}
