import os
import sys

from django.apps import AppConfig
from django.conf import settings
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
