import os
import tempfile
from pathlib import Path
from typing import Any

import dj_database_url
from onloop.logging import configure_structlog

# A file, because threads could not share a database in memory.
FOLDER = Path(tempfile.mkdtemp())

SECRET_KEY = "only for tests"
DEBUG = False
ALLOWED_HOSTS = ["testserver", "127.0.0.1", "localhost"]
ROOT_URLCONF = "tests.onloop.urls"
USE_TZ = True
SITE_ID = 1
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.flatpages",
    "django.contrib.redirects",
    "django.contrib.sites",
    "onloop",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates"}]
DATABASES: dict[str, Any] = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": FOLDER / "db.sqlite3",
        "TEST": {"NAME": FOLDER / "test.sqlite3"},
        "CONN_MAX_AGE": 60,
    }
}
# test_postgresql.py
if url := os.environ.get("DATABASE_URL"):
    DATABASES["default"] = dj_database_url.parse(url, conn_max_age=60)

configure_structlog()

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"()": "onloop.logging.Formatter", "log_format": "json", "service": "x"}
    },
    "handlers": {"stderr": {"()": "onloop.logging.QueueHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"]},
    # Without Django's default handlers.
    "loggers": {"django": {"handlers": [], "level": "NOTSET"}},
}
