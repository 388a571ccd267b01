"""The settings that startproject writes, plus what every contender must do."""

import os

from config.settings import *
from config.settings import INSTALLED_APPS, MIDDLEWARE

DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "bench.urls"
INSTALLED_APPS = [*INSTALLED_APPS, "bench"]
MIDDLEWARE = ["bench.middleware.TimingMiddleware", *MIDDLEWARE]
if delay := os.environ.get("BENCH_MIDDLEWARE"):
    MIDDLEWARE.append(delay)

DATABASES = {
    "default": {
        "sqlite": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": os.environ["BENCH_SQLITE"],
        },
        # Host and user come from PGHOST and PGUSER.
        "postgresql": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "postgres",
        },
    }[os.environ["BENCH_DATABASE"]]
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"level": "INFO", "handlers": ["stderr"]},
}
