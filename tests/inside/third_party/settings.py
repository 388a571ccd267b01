"""The service's own settings, with every package of test_prediction.py."""

import tempfile
from pathlib import Path

from tests.settings import *

# Each is what its package asks for.
INSTALLED_APPS = [
    *INSTALLED_APPS,
    "allauth",
    "allauth.account",
    "auditlog",
    "axes",
    "corsheaders",
    "debug_toolbar",
    "django_htmx",
    "django.contrib.flatpages",
    "django.contrib.sites",
    "django_structlog",
    "simple_history",
    "waffle",
]
# allauth looks for its own when it starts; the tests set the chain.
MIDDLEWARE = [*MIDDLEWARE, "allauth.account.middleware.AccountMiddleware"]
SITE_ID = 1
STATIC_ROOT = Path(tempfile.mkdtemp())
CORS_ALLOW_ALL_ORIGINS = True
MAINTENANCE_MODE = False
DEBUG_TOOLBAR_CONFIG = {"IS_RUNNING_TESTS": False}
REQUEST_ID_HEADER = None
