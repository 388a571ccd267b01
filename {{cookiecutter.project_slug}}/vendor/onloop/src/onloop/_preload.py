"""Load at the start what the first requests would load."""

import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.template import engines
from django.template.utils import get_app_template_dirs
from django.urls import get_resolver
from django.utils.translation import gettext

# Seconds, because DIRS may name a folder with far more than templates.
TEMPLATES_TIMEOUT = 1

logger = logging.getLogger("onloop.handler")


def preload() -> None:
    """What cannot be loaded is left to the request that needs it."""
    for name, load in STEPS.items():
        try:
            load()
        except Exception:
            logger.exception("The %s cannot be loaded", name)


def load_templates() -> None:
    end = time.monotonic() + TEMPLATES_TIMEOUT
    for engine in engines.all():
        folders: list[Any] = [*engine.dirs]
        for root in (*folders, *get_app_template_dirs(engine.app_dirname)):
            for path in Path(root).rglob("*.html"):
                if time.monotonic() > end:
                    return
                # Packages bring some that need what is not installed.
                with suppress(Exception):
                    engine.get_template(path.relative_to(root).as_posix())


STEPS = {
    "translations": lambda: gettext("-"),
    # By name too, in the language of the settings.
    "routes": lambda: get_resolver().reverse_dict,
    "templates": load_templates,
}
