"""A page for each error; put into a service by a test."""

import asyncio
import os
from typing import Any

from django.conf import settings
from django.core.exceptions import BadRequest, PermissionDenied, SuspiciousOperation
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
NAMED = (BadRequest, SuspiciousOperation, PermissionDenied, Http404, RuntimeError)
ERRORS = {error.__name__: error for error in NAMED}


async def fail(request: HttpRequest, error: str) -> HttpResponse:
    raise ERRORS[error]("a secret")


@csrf_exempt
async def form(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.POST["name"])


def synchronous(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


async def wait(request: HttpRequest) -> HttpResponse:
    await asyncio.Event().wait()
    raise AssertionError


def context(request: HttpRequest) -> dict[str, str]:
    if "broken" in request.GET:
        raise RuntimeError("a secret")
    return {}


settings.TEMPLATES[0]["OPTIONS"]["context_processors"].append("errors.context")
settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1000

from config.asgi import application as usual
from config.urls import urlpatterns
from onloop.asgi import get_asgi_application

for prefix in ("", "api/"):
    urlpatterns += [
        path(f"{prefix}fail/<error>/", fail),
        path(f"{prefix}form/", form),
        path(f"{prefix}busy/", synchronous),
        path(f"{prefix}token/", wait),
        path(f"{prefix}late/", wait),
    ]
# Its timeouts may fire early, but never late.
settings.REQUEST_TIMEOUT = 0.05
late = get_asgi_application()
assert late.request_timeout
settings.REQUEST_TIMEOUT = None
# As if other requests held all threads.
busy = get_asgi_application()
busy.threads.limit = 0
busy.threads.wait_seconds = 0.01
OTHERS = {"late": late, "busy": busy}


async def application(scope: Any, receive: Any, send: Any) -> None:
    last = scope.get("path", "").rstrip("/").rpartition("/")[2]
    await OTHERS.get(last, usual)(scope, receive, send)
