"""`startproject` with django-structlog, which adds two log lines of its own."""

import structlog
from startproject_settings import *
from startproject_settings import INSTALLED_APPS, LOGGING, MIDDLEWARE

INSTALLED_APPS = [*INSTALLED_APPS, "django_structlog"]
MIDDLEWARE = ["django_structlog.middlewares.RequestMiddleware", *MIDDLEWARE]

shared = [
    structlog.contextvars.merge_contextvars,
    structlog.processors.TimeStamper(fmt="iso"),
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
]
LOGGING["formatters"] = {
    "line": {
        "()": structlog.stdlib.ProcessorFormatter,
        "processor": structlog.processors.JSONRenderer(),
        "foreign_pre_chain": shared,
    }
}
structlog.configure(
    processors=[
        structlog.stdlib.filter_by_level,
        *shared,
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
    cache_logger_on_first_use=True,
)
