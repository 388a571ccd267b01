"""A service with packages that have their own request ids, outside or
inside of its middleware; put into a service by a test.
"""

import logging
import os
from collections.abc import AsyncIterator
from typing import Any

import structlog
from asgiref.sync import sync_to_async
from django.conf import settings
from django.http import HttpRequest, StreamingHttpResponse
from django.urls import path
from onloop.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
logger = logging.getLogger("pages")


async def parts(request_id: str) -> AsyncIterator[str]:
    yield request_id
    logger.info("in the stream")


async def page(request: HttpRequest) -> StreamingHttpResponse:
    logger.info("in the view")
    await sync_to_async(logger.info)("in a thread")
    await structlog.get_logger("pages").ainfo("by structlog")
    return StreamingHttpResponse(parts(request.headers["X-Request-ID"]))


urlpatterns = [path("page/", page)]
settings.ROOT_URLCONF = __name__
settings.INSTALLED_APPS += ["django_structlog", "django_guid"]
settings.DJANGO_GUID = {"GUID_HEADER_NAME": "X-Request-ID"}
own = settings.MIDDLEWARE
others = [
    "django_guid.middleware.guid_middleware",
    "django_structlog.middlewares.RequestMiddleware",
]
applications = {}
for place, chain in {b"inside": [*own, *others], b"outside": [*others, *own]}.items():
    settings.MIDDLEWARE = chain
    applications[place] = get_asgi_application()


async def application(scope: Any, *args: Any) -> None:
    place = dict(scope.get("headers", ())).get(b"x-place", b"inside")
    await applications[place](scope, *args)
