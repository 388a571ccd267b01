"""The generated service as it is, plus the app that holds the measured views."""

import os

from config.settings import *
from config.settings import INSTALLED_APPS, MIDDLEWARE

ROOT_URLCONF = "bench.urls"
INSTALLED_APPS = [*INSTALLED_APPS, "bench"]
if delay := os.environ.get("BENCH_MIDDLEWARE"):
    MIDDLEWARE = [*MIDDLEWARE, delay]

# The load generator speaks plain HTTP.
SECURE_SSL_REDIRECT = False
