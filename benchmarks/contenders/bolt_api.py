import logging
import os
import time
from collections.abc import Awaitable, Callable

from bench.models import Item
from django.conf import settings
from django_bolt import JSON, BoltAPI, Request, Response
from django_bolt.exceptions import HTTPException
from django_bolt.middleware.django_loader import load_django_middleware

logger = logging.getLogger("timing")


class TimingMiddleware:
    """A middleware of django-bolt's own kind, which costs it less than Django's."""

    def __init__(self, get_response: Callable[[Request], Awaitable[Response]]) -> None:
        self.get_response = get_response

    async def __call__(self, request: Request) -> Response:
        start = time.perf_counter()
        response = await self.get_response(request)
        if response.status_code == 200:
            response.headers["X-Status"] = "OK"
        logger.info("Request took %.4f seconds", time.perf_counter() - start)
        return response


middleware = []
if os.environ["BENCH_CHAIN"] == "all":
    # In place of bench.middleware, the first; `django_middleware=` would go outside.
    middleware = [TimingMiddleware, *load_django_middleware(settings.MIDDLEWARE[1:])]
api = BoltAPI(middleware=middleware)


@api.get("/json")
async def json_view() -> dict[str, str]:
    return {"hello": "world"}


@api.get("/sync")
def sync_view() -> dict[str, str]:
    return {"hello": "world"}


@api.get("/items/{pk}")
async def item_view(pk: int) -> dict[str, int | str]:
    try:
        item = await Item.objects.aget(pk=pk)
    except Item.DoesNotExist as missing:
        raise HTTPException(404) from missing
    return {"id": item.pk, "name": item.name}


# Without a route it answers in Rust, and an exception bypasses the middleware.
@api.get("/{path:path}")
async def missing_view(path: str) -> JSON:
    return JSON({"detail": "Not Found"}, status_code=404)
