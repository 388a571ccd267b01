"""What a platform's probes ask: is it alive, may it have traffic?

A middleware rather than views, and before Django's own: a probe comes by plain HTTP to
the address of one machine, which is no name in ALLOWED_HOSTS.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from asgiref.sync import markcoroutinefunction, sync_to_async
from django.db import Error, connections
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, JsonResponse
from django.http.response import HttpResponseBase
from django.utils.decorators import async_only_middleware

GetResponse = Callable[[HttpRequest], Awaitable[HttpResponseBase]]

# Seconds for each check.
CHECK_TIMEOUT = 0.9

logger = logging.getLogger("serving.health")


class NotReady(Exception):
    """The message is included in the public response."""


async def livez(request: HttpRequest) -> HttpResponseBase:
    return health_response({})


async def readyz(request: HttpRequest) -> HttpResponseBase:
    # In this order, for the second needs the first.
    for check in (database, migrations):
        try:
            async with asyncio.timeout(CHECK_TIMEOUT):
                await sync_to_async(check)()
        except NotReady as error:
            reason = cause = str(error)
        except TimeoutError:
            reason = cause = f"no answer within {CHECK_TIMEOUT:g} seconds"
        except Error as error:
            # Driver errors may contain host and user names; log them only.
            reason, cause = "it cannot be reached", str(error).strip()
        else:
            continue
        logger.warning("Not ready: %s: %s", check.__name__, cause)
        return health_response({check.__name__: reason})
    return health_response({})


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


def health_response(failed: dict[str, str]) -> JsonResponse:
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
