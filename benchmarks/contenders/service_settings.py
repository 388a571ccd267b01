"""The generated service as it is, plus the app that holds the measured views."""

import os

from config.settings import *
from config.settings import INSTALLED_APPS, MIDDLEWARE

ROOT_URLCONF = "bench.urls"
INSTALLED_APPS = [*INSTALLED_APPS, "bench"]
match os.environ.get("BENCH_CHAIN"):
    case "ours":
        MIDDLEWARE = MIDDLEWARE[:3]
    case "django":
        MIDDLEWARE = [path for path in MIDDLEWARE if path.startswith("django.")]
    case "none":
        MIDDLEWARE = []
if delay := os.environ.get("BENCH_MIDDLEWARE"):
    MIDDLEWARE = [*MIDDLEWARE, delay]

# The load generator speaks plain HTTP.
SECURE_SSL_REDIRECT = False
