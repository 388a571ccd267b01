"""What a platform's probes ask: is it alive, may it have traffic?"""

from collections.abc import Awaitable, Callable

from asgiref.sync import markcoroutinefunction
from django.db import connections
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.decorators import async_only_middleware
from onloop.health import HealthCheck

GetResponse = Callable[[HttpRequest], Awaitable[HttpResponseBase]]
PROBES = {"/livez", "/readyz"}


def database() -> None:
    for connection in connections.all():
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")


def migrations() -> str | None:
    for connection in connections.all():
        executor = MigrationExecutor(connection)
        if plan := executor.migration_plan(executor.loader.graph.leaf_nodes()):
            return f"{len(plan)} unapplied, the first is {plan[0][0]}"
    return None


@async_only_middleware
def probes(get_response: GetResponse) -> GetResponse:
    """Before Django's middleware: a probe comes by plain HTTP and names no host."""
    # Migrations stay applied, and reading hundreds of them takes time.
    ready = HealthCheck(database, until_passed=[migrations])
    views = {"/livez": HealthCheck(), "/readyz": ready}
    return markcoroutinefunction(
        lambda request: views.get(request.path_info, get_response)(request)
    )
