import os
import tempfile
from pathlib import Path

import environ

# The threads of a request each open the file; one in memory they would not share.
FOLDER = Path(tempfile.mkdtemp())

SECRET_KEY = "only for tests"
DEBUG = False
ALLOWED_HOSTS = ["testserver", "127.0.0.1", "localhost"]
ROOT_URLCONF = "request_path.urls"
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
    "serving",
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
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": FOLDER / "db.sqlite3",
        "TEST": {"NAME": FOLDER / "test.sqlite3"},
        "CONN_MAX_AGE": 60,
    }
}
if url := os.environ.get("DATABASE_URL"):
    DATABASES["default"] = environ.Env.db_url_config(url) | {"CONN_MAX_AGE": 60}
