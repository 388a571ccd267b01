"""Measure and check the middleware of packages; print the results as JSON.

This module is its settings too. It runs in a separate process, because the packages
connect signals, register checks and patch.
"""

import asyncio
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from blockbuster import blockbuster_ctx

from tests.onloop.settings import *
from tests.onloop.settings import MIDDLEWARE as CHAIN

PLACES = (0, 4, len(CHAIN))

# The settings that each package requires.
INSTALLED_APPS = [
    *INSTALLED_APPS,
    "allauth",
    "allauth.account",
    "auditlog",
    "axes",
    "corsheaders",
    "debug_toolbar",
    "django_htmx",
    "django_structlog",
    "simple_history",
    "waffle",
]
# allauth requires its own middleware at startup.
MIDDLEWARE = [*CHAIN, "allauth.account.middleware.AccountMiddleware"]
STATIC_URL = "static/"
STATIC_ROOT = Path(tempfile.mkdtemp())
CORS_ALLOW_ALL_ORIGINS = True
MAINTENANCE_MODE = False
DEBUG_TOOLBAR_CONFIG = {"IS_RUNNING_TESTS": False}
REQUEST_ID_HEADER = None


def examine(chain: list[str], path: str) -> dict[str, Any]:
    from django.conf import settings
    from django.core.checks import run_checks
    from onloop.measure import measure

    settings.MIDDLEWARE = chain
    measurement = asyncio.run(measure())
    [execution] = [m.execution for m in measurement.middleware if m.path == path]
    return {
        "status": measurement.status,
        "hops": [hop.middleware for hop in measurement.thread_hops],
        "execution": execution,
        "checks": [[m.id, m.msg] for m in run_checks(tags=["onloop"])],
    }


def main(*paths: str) -> None:
    import django

    django.setup()
    found: dict[str, list[dict[str, Any]]] = {"all": [], "reversed": []}
    # Middleware that blocks the loop answers with 500.
    with blockbuster_ctx("onloop"):
        for path in paths:
            found[path] = [
                examine([*CHAIN[:place], path, *CHAIN[place:]], path)
                for place in PLACES
            ]
        found["all"] = [examine([*CHAIN, *paths], paths[0])]
        found["reversed"] = [examine([*CHAIN, *reversed(paths)], paths[0])]
    print(json.dumps(found))


if __name__ == "__main__":
    import sys

    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.onloop.third_party_project"
    main(*sys.argv[1:])
    sys.stdout.flush()
    # The interpreter may crash at exit because blockbuster changed built-in types.
    os._exit(0)
