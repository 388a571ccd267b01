"""The project of threads_project.py, for uvicorn: by onloop's handler and by Django's."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.onloop.settings")

from django.conf import settings
from django.core import asgi as django_asgi
from onloop.asgi import get_asgi_application

settings.ROOT_URLCONF = "tests.onloop.threads_project"
settings.REQUEST_THREADS = int(os.environ.get("REQUEST_THREADS", "40"))
application = get_asgi_application()
stock_application = django_asgi.get_asgi_application()
