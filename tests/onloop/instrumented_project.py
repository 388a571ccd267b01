"""A project for an instrumentation: onloop's handler, and stock Django's beside it.

The server is started as the tool's users start theirs, with the tool's patches.
"""

import asyncio
import json
import logging
import os
import sys
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from typing import Any

from asgiref.sync import markcoroutinefunction, sync_to_async

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.onloop.settings")
TOOL = os.environ["TOOL"]

if TOOL == "sentry":
    import sentry_sdk
    from sentry_sdk.integrations.django import DjangoIntegration

    sentry_sdk.init(
        os.environ["BACKEND"],
        traces_sample_rate=1.0,
        data_collection={"user_info": True},
        enable_logs=True,
        integrations=[DjangoIntegration(middleware_spans=True)],
        transport_queue_size=1000,
    )

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.core.asgi import get_asgi_application as get_stock_application
from django.core.management import call_command
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import path
from onloop import outcome
from onloop.asgi import get_asgi_application

CONCURRENT = 16
logger = logging.getLogger("project")
logger.setLevel("INFO")
barriers: dict[str, Any] = {}


def everybody(request: HttpRequest, barrier: Any) -> Any:
    """Wait until all requests of a kind have begun, so that they overlap."""
    kind = request.headers["x-handler"] + request.path.rpartition("/")[0]
    return barriers.setdefault(kind, barrier(CONCURRENT)).wait()


def name(request: HttpRequest) -> str:
    """Reads the session and the user."""
    return request.user.get_username()


def answer(request: HttpRequest, user: str) -> HttpResponse:
    logger.info("in the view of %s", user)
    if "error" in request.path:
        raise ArithmeticError(user)
    return HttpResponse(user)


async def asynchronous(request: HttpRequest, number: int) -> HttpResponse:
    user = await sync_to_async(name)(request)
    await everybody(request, asyncio.Barrier)
    return answer(request, user)


def synchronous(request: HttpRequest, number: int) -> HttpResponse:
    user = name(request)
    everybody(request, threading.Barrier)
    return answer(request, user)


async def stream(request: HttpRequest, number: int) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[str]:
        yield "first "
        await everybody(request, asyncio.Barrier)
        user = await sync_to_async(name)(request)
        logger.info("in the stream of %s", user)
        yield user

    return StreamingHttpResponse(parts())


def flush(request: HttpRequest) -> HttpResponse:
    """Let the instrumentation send what it has buffered."""
    if TOOL == "sentry":
        sentry_sdk.flush(10)
    elif TOOL == "opentelemetry":
        from opentelemetry._logs import get_logger_provider
        from opentelemetry.trace import get_tracer_provider

        providers: list[Any] = [get_tracer_provider(), get_logger_provider()]
        for provider in providers:
            provider.force_flush()
    elif TOOL == "ddtrace":
        sys.modules["ddtrace"].tracer.flush()
    return HttpResponse()


class TimingMiddleware:
    """Log with log_fields(), which does not look for the calling line."""

    sync_capable = False
    async_capable = True

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> HttpResponseBase:
        with outcome.observe(request, partial(self.log, request)) as observation:
            response: HttpResponseBase = await self.get_response(request)
            observation.response = response
        return response

    def log(self, request: HttpRequest, end: outcome.RequestEnd) -> None:
        message = f"the end of {request.path}"
        logger.handle(
            logger.makeRecord("project", logging.INFO, "", 0, message, (), None)
        )


urlpatterns = [
    path("async/<int:number>", asynchronous),
    path("async-error/<int:number>", asynchronous),
    path("sync/<int:number>", synchronous),
    path("sync-error/<int:number>", synchronous),
    path("stream/<int:number>", stream),
    path("refused/<int:number>", asynchronous),
    path("flush/", flush),
]
settings.ROOT_URLCONF = __name__
settings.MIDDLEWARE += [f"{__name__}.TimingMiddleware"]
# Stock Django opens a connection for each request, so onloop has to do so here too.
settings.DATABASES["default"]["CONN_MAX_AGE"] = 0
applications: dict[bytes, Any] = {
    b"onloop": get_asgi_application(),
    b"stock": get_stock_application(),
}


def sign_in(number: int) -> None:
    from django.contrib.auth.models import User
    from django.contrib.sessions.models import Session
    from django.utils.timezone import now

    user = User.objects.create(username=f"user{number}")
    session = {
        SESSION_KEY: str(user.pk),
        BACKEND_SESSION_KEY: "django.contrib.auth.backends.ModelBackend",
        HASH_SESSION_KEY: user.get_session_auth_hash(),
    }
    Session.objects.save(f"session-{number}", session, now() + timedelta(days=1))


call_command("migrate", verbosity=0)
for number in range(CONCURRENT):
    sign_in(number)

if TOOL == "opentelemetry":
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    applications = {
        handler: OpenTelemetryMiddleware(application)
        for handler, application in applications.items()
    }
elif TOOL == "newrelic":
    from newrelic.core.application import Application

    record_transaction = Application.record_transaction

    def record(self: Any, transaction: Any) -> Any:
        """Keep what its agent would send, because there is no collector."""
        seen = {
            "trace_id": transaction.trace_id,
            "parent": transaction.parent_span,
            "name": transaction.name,
            "path": transaction.request_uri,
            "errors": [error.type for error in transaction.errors],
            "nodes": list(nodes(transaction.root)),
        }
        os.write(2, f"\n{json.dumps(seen)}\n".encode())
        return record_transaction(self, transaction)

    def nodes(node: Any) -> Any:
        yield [type(node).__name__, getattr(node, "name", "")]
        for child in node.children:
            yield from nodes(child)

    Application.record_transaction = record


async def application(scope: Any, receive: Any, send: Any) -> None:
    handler = dict(scope.get("headers", ())).get(b"x-handler", b"onloop")
    await applications[handler](scope, receive, send)
