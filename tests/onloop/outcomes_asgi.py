"""The project of outcomes.py, for uvicorn: by onloop's handler and by Django's."""

import logging
import os
import warnings

from django.conf import settings
from django.core import asgi as django_asgi
from onloop.asgi import get_asgi_application

from tests.onloop import outcomes

# Django warns about its own FileResponse.
warnings.filterwarnings("ignore", "StreamingHttpResponse must consume", Warning)
settings.ROOT_URLCONF = outcomes.__name__
settings.MIDDLEWARE = ["tests.onloop.outcomes.Observer", *settings.MIDDLEWARE]
if seconds := os.environ.get("REQUEST_TIMEOUT"):
    settings.REQUEST_TIMEOUT = float(seconds)
application = get_asgi_application()
stock_application = django_asgi.get_asgi_application()
logging.getLogger("outcomes").setLevel(logging.INFO)
