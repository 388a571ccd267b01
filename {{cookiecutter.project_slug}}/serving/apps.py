import os
import sys

from django.apps import AppConfig
from django.conf import settings
from django.contrib.staticfiles import storage
from django.core.checks import CheckMessage, Warning, register
from django.core.exceptions import ImproperlyConfigured
from onloop.logging import Formatter, configure_structlog


class ServingConfig(AppConfig):
    name = "serving"

    def ready(self) -> None:
        configure_structlog()


def formatter() -> Formatter:
    """For LOGGING, and config/logging.json, which uvicorn reads before the settings."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    try:
        return Formatter(settings.LOG_FORMAT, settings.SERVICE)
    except ImproperlyConfigured as error:
        sys.exit(f"{error}")


@register(deploy=True)
def check_static_files(**kwargs: object) -> list[CheckMessage]:
    # Only a storage with a manifest has it, and only collectstatic fills it.
    files = settings.STATIC_URL and storage.staticfiles_storage
    if getattr(files, "hashed_files", True):
        return []
    message = "collectstatic has not run: pages that link to static files fail."
    return [Warning(message, "Run `manage.py collectstatic`.", id="serving.W009")]
