"""What an operator's probes ask: does it live, may it have traffic?

A middleware rather than views, and before Django's own: a probe comes by plain HTTP
to the address of one machine, which is no name in ALLOWED_HOSTS.
"""

import asyncio
import logging
import signal
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from types import FrameType
from typing import Any

from asgiref.sync import markcoroutinefunction, sync_to_async
from django.db import Error, connections
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, JsonResponse
from django.http.response import HttpResponseBase
from django.utils.decorators import async_only_middleware

GetResponse = Callable[[HttpRequest], Awaitable[HttpResponseBase]]

# Seconds for each check.
LIMIT = 0.9

logger = logging.getLogger("serving.health")


class NotReady(Exception):
    """Its text is shown to whoever asks."""


async def livez(request: HttpRequest) -> HttpResponseBase:
    return answer({})


async def readyz(request: HttpRequest) -> HttpResponseBase:
    if stopping:
        return answer({"server": "it shuts down"})
    # In this order, for the second needs the first.
    for check in (database, migrations):
        try:
            async with asyncio.timeout(LIMIT):
                await sync_to_async(check)()
        except NotReady as error:
            reason = cause = str(error)
        except TimeoutError:
            reason = cause = f"no answer within {LIMIT:g} seconds"
        except Error as error:
            # Hosts and users are nothing for the public.
            reason, cause = "it cannot be reached", str(error).strip()
        else:
            continue
        logger.warning("Not ready: %s: %s", check.__name__, cause)
        return answer({check.__name__: reason})
    return answer({})


def database() -> None:
    for connection in connections.all():
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")


def migrations() -> None:
    for connection in connections.all():
        executor = MigrationExecutor(connection)
        plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
        if plan:
            raise NotReady(f"{len(plan)} unapplied, the first is {plan[0][0]}")


def answer(failed: dict[str, str]) -> JsonResponse:
    return JsonResponse(
        {"status": "failed", "failed": failed} if failed else {"status": "ok"},
        status=503 if failed else 200,
        headers={"Cache-Control": "no-store"},
    )


PROBES: dict[str, GetResponse] = {"/livez": livez, "/readyz": readyz}


@async_only_middleware
def probes(get_response: GetResponse) -> GetResponse:
    def middleware(request: HttpRequest) -> Awaitable[HttpResponseBase]:
        return PROBES.get(request.path_info, get_response)(request)

    return markcoroutinefunction(middleware)


Handler = Callable[[int, FrameType | None], Any]
stopping = False


def start() -> None:
    """Called when the server starts: from SIGTERM or SIGINT on it is not ready.

    uvicorn tells an application that it stops only after the last request, but has
    its own handlers of signals in place before the application starts.
    """
    global stopping
    stopping = False
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            handler = signal.getsignal(number)
            if callable(handler):
                signal.signal(number, partial(note, handler))


def note(handler: Handler, number: int, frame: FrameType | None) -> None:
    global stopping
    stopping = True
    handler(number, frame)


def stop() -> None:
    """Called when the server stops."""
    global stopping
    stopping = True
    for number in (signal.SIGTERM, signal.SIGINT):
        handler = signal.getsignal(number)
        if isinstance(handler, partial) and handler.func is note:
            signal.signal(number, handler.args[0])
