"""No framework: the upper bound that uvicorn and the log line set for the others."""

import json
import logging
import time
from typing import Any

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
logger = logging.getLogger("timing")


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        # uvicorn takes this to mean that lifespan is not supported.
        raise RuntimeError(f"{scope['type']} is not served")
    start = time.perf_counter()
    found = scope["path"] == "/json"
    body = json.dumps({"hello": "world"} if found else {"detail": "Not Found"}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if found:
        headers.append((b"x-status", b"OK"))
    await send(
        {
            "type": "http.response.start",
            "status": 200 if found else 404,
            "headers": headers,
        }
    )
    await send({"type": "http.response.body", "body": body})
    logger.info("Request took %.4f seconds", time.perf_counter() - start)
