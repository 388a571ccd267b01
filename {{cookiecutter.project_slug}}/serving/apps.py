import os
import sys

import structlog
from django.apps import AppConfig
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from onloop.logging import Formatter


class ServingConfig(AppConfig):
    name = "serving"

    def ready(self) -> None:
        # structlog.get_logger() writes through the standard library's loggers.
        structlog.configure(
            processors=[
                structlog.stdlib.filter_by_level,
                structlog.stdlib.PositionalArgumentsFormatter(),
                structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
            ],
            logger_factory=structlog.stdlib.LoggerFactory(),
            wrapper_class=structlog.stdlib.BoundLogger,
            cache_logger_on_first_use=True,
        )


def formatter() -> Formatter:
    """For LOGGING, and config/logging.json, which uvicorn reads before the settings."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    try:
        return Formatter(settings.LOG_FORMAT, settings.SERVICE)
    except ImproperlyConfigured as error:
        sys.exit(f"{error}")
