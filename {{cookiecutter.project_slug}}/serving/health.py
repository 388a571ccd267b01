"""What a platform's probes ask: is it alive, may it have traffic?"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from threading import Thread

from asgiref.sync import markcoroutinefunction
from django.db import Error, connections
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, JsonResponse
from django.http.response import HttpResponseBase
from django.utils.decorators import async_only_middleware

GetResponse = Callable[[HttpRequest], Awaitable[HttpResponseBase]]
PROBES = {"/livez", "/readyz"}
CHECK_TIMEOUT = 0.9  # seconds, less than a result is kept
logger = logging.getLogger("serving.health")


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


# Any number of probes may arrive: one thread checks for all of them.
class Probe:
    def __init__(self, *checks: Callable[[], str | None]) -> None:
        self.checks = checks
        self.failed: dict[str, dict[str, str]] = {}
        self.thread = Thread()
        self.late_at = self.kept_until = 0.0

    async def __call__(self, request: HttpRequest) -> HttpResponseBase:
        now = time.monotonic()
        if self.checks and now >= self.kept_until and not self.thread.is_alive():
            self.done: Future[None] = Future()
            # A daemon: the process can end while a database does not answer.
            self.thread = Thread(target=self.check, name="readyz", daemon=True)
            self.thread.start()
            self.late_at, self.kept_until = now + CHECK_TIMEOUT, now + 1
        if (left := self.late_at - now) > 0:
            await asyncio.wait([asyncio.wrap_future(self.done)], timeout=left)
        body = {"status": "failed" if self.failed else "ok", **self.failed}
        status = 503 if self.failed else 200
        return JsonResponse(body, status=status, headers={"Cache-Control": "no-store"})

    def check(self) -> None:
        for check in self.checks:
            name = check.__name__
            late = f"no answer within {CHECK_TIMEOUT:g} seconds"
            self.failed = {"failed": {name: late}}
            try:
                reason = cause = check()
            except Error as error:
                # Driver errors may contain host and user names; log them only.
                reason, cause = "it cannot be reached", str(error).strip()
            except Exception:
                reason = cause = "it cannot be checked"
                logger.exception("The check of the %s failed", name)
            if reason:
                self.failed = {"failed": {name: reason}}
                logger.warning("Not ready: %s: %s", name, cause)
                break
        else:
            self.failed = {}
            # Migrations stay applied, and reading hundreds of them takes time.
            self.checks = self.checks[:1]
        self.done.set_result(None)
        connections.close_all()


@async_only_middleware
def probes(get_response: GetResponse) -> GetResponse:
    """Before Django's middleware: a probe comes by plain HTTP and names no host."""
    views = {"/livez": Probe(), "/readyz": Probe(database, migrations)}
    return markcoroutinefunction(
        lambda request: views.get(request.path_info, get_response)(request)
    )
