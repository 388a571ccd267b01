"""`startproject` served by django-bolt; with BENCH_CHAIN=none, without middleware."""

from startproject_settings import *
from startproject_settings import INSTALLED_APPS, LOGGING

INSTALLED_APPS = [*INSTALLED_APPS, "django_bolt"]
BOLT_API = ["bolt_api:api"]
# Its access log: uvicorn's is off too.
LOGGING["loggers"] = {"django.server": {"level": "CRITICAL"}}
