"""Health checks that may block, for any number of probes."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

from django.conf import settings
from django.db import Error, connections
from django.db.migrations.executor import MigrationExecutor
from django.forms.renderers import get_default_renderer
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template import engines
from django.template.utils import get_app_template_dirs
from django.urls import NoReverseMatch, get_resolver, reverse
from django.utils.module_loading import import_string
from django.utils.translation import gettext

Check = Callable[[], str | None]

# Seconds after which a check has failed, and for which a result is reused.
CHECK_TIMEOUT = 0.9
RESULT_LIFETIME = 1
# Seconds for each engine: DIRS may contain a folder with far more than templates.
TEMPLATES_TIMEOUT = 1

logger = logging.getLogger("onloop.health")


def database() -> str | None:
    """Query each database."""
    for connection in connections.all():
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    return None


def migrations() -> str | None:
    """Look for unapplied migrations, which is slow if there are hundreds."""
    for connection in connections.all():
        executor = MigrationExecutor(connection)
        if plan := executor.migration_plan(executor.loader.graph.leaf_nodes()):
            return f"{len(plan)} unapplied, the first is {plan[0][0]}"
    return None


def preload() -> str | None:
    """Load what the first requests would otherwise have to load.

    The URLconf, the translations, the HTML templates and the message storage. It always
    passes: what cannot be loaded is left to the request that needs it.
    """
    for name, load in PRELOADED.items():
        try:
            load()
        except Exception:
            logger.exception("The %s cannot be loaded", name)
    return None


def load_templates() -> None:
    for engine in engines.all():
        load_folders(engine, *engine.dirs, *get_app_template_dirs(engine.app_dirname))


def load_form_templates() -> None:
    # FORM_RENDERER may have an engine of its own.
    if engine := getattr(get_default_renderer(), "engine", None):
        load_folders(engine, *engine.dirs)


def load_folders(engine: Any, *folders: str | Path) -> None:
    end = time.monotonic() + TEMPLATES_TIMEOUT
    # Looking it up imports the context processors of Django's engine.
    getattr(getattr(engine, "engine", None), "template_context_processors", None)
    for root in map(str, folders):
        for path in Path(root).rglob("*.html"):
            if time.monotonic() > end:
                return
            # Templates of packages may need what is not installed.
            with suppress(Exception):
                engine.get_template(path.relative_to(root).as_posix())


def load_routes() -> None:
    """Also load the names for reverse(), in the language of the settings."""
    for namespace in get_resolver().namespace_dict:
        with suppress(NoReverseMatch):
            reverse(f"{namespace}:-")


PRELOADED: dict[str, Callable[[], object]] = {
    "translations": lambda: gettext("-"),
    "routes": load_routes,
    "templates": load_templates,
    "form templates": load_form_templates,
    "message storage": lambda: import_string(settings.MESSAGE_STORAGE),
}


class HealthCheck:
    """An async view that answers 200, or 503 with the check that failed, in JSON.

    A check returns what is wrong, or None, and may block: the checks run in a thread of
    their own, once for all requests that arrive meanwhile and within the next second.
    A check that takes longer than 0.9 seconds has failed. Those in ``until_passed`` run
    after the others until all have passed once. Exceptions are logged, and their
    messages are not included in the response.
    """

    def __init__(self, *checks: Check, until_passed: Sequence[Check] = ()) -> None:
        self.checks = checks
        self.until_passed = until_passed
        self.failed: dict[str, str] = {}
        self.thread = Thread()
        self.late_at = self.kept_until = 0.0

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        now = time.monotonic()
        checks = [*self.checks, *self.until_passed]
        if checks and now >= self.kept_until and not self.thread.is_alive():
            self.done: Future[None] = Future()
            # A daemon, so that the process can end while a database hangs.
            self.thread = Thread(
                target=self.run, args=(checks,), name="health", daemon=True
            )
            self.thread.start()
            self.late_at, self.kept_until = now + CHECK_TIMEOUT, now + RESULT_LIFETIME
        if (remaining := self.late_at - now) > 0:
            await asyncio.wait([asyncio.wrap_future(self.done)], timeout=remaining)
        failed = self.failed
        return JsonResponse(
            {"status": "failed", "failed": failed} if failed else {"status": "ok"},
            status=503 if failed else 200,
            headers={"Cache-Control": "no-store"},
        )

    def run(self, checks: Sequence[Check]) -> None:
        for check in checks:
            name = getattr(check, "__name__", type(check).__name__)
            self.failed = {name: f"no answer within {CHECK_TIMEOUT:g} seconds"}
            try:
                reason = cause = check()
            except Error as error:
                # Driver errors may contain host and user names.
                reason, cause = "it cannot be reached", str(error).strip()
            except Exception:
                reason = cause = "it cannot be checked"
                logger.exception("The %s check failed", name)
            if reason:
                self.failed = {name: reason}
                logger.warning("Not ready: %s: %s", name, cause)
                break
        else:
            self.failed = {}
            self.until_passed = ()
        self.done.set_result(None)
        connections.close_all()
