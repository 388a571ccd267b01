import os
import sys

from django.core.exceptions import ImproperlyConfigured

# Django's own handler works too: from django.core.asgi import get_asgi_application
from onloop.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
try:
    application = get_asgi_application()
except ImproperlyConfigured as error:
    sys.exit(f"{error}")
