"""The service on Django's own handler: what config/asgi.py may go back to."""

from django.core.asgi import get_asgi_application

from tests import outcomes

application = get_asgi_application()
# It serves the same pages.
urlpatterns = outcomes.urlpatterns
