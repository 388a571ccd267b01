import gc
import logging

import django
from django.core import asgi
from django.core.handlers.asgi import ASGIHandler as DjangoASGIHandler

from onloop import _compat

logger = logging.getLogger("onloop.asgi")


def get_asgi_application() -> DjangoASGIHandler:
    """Set up Django and return an ASGI handler that uses threads only on demand.

    On a version of Django or asgiref that onloop does not support, return Django's own
    handler and log a warning. If an instrumentation has replaced Django's function of
    this name, return what the replacement makes of onloop's handler.
    """
    enabled = gc.isenabled()
    # Each collection would visit all that is loaded by then, and free next to nothing.
    gc.disable()
    try:
        return load()
    finally:
        if enabled:
            gc.enable()


def load() -> DjangoASGIHandler:
    if _compat.PROBLEM:
        application = asgi.get_asgi_application()
        logger.warning(
            "Serving with Django's own handler, which starts a thread for each "
            "request: update onloop, because %s",
            _compat.PROBLEM,
        )
        return application
    from onloop.handler import ASGIHandler

    if _compat.defined_in(asgi.get_asgi_application, asgi):
        django.setup(set_prefix=False)
        return ASGIHandler()
    # The replacement calls Django's function, which looks up this name.
    vars(asgi).update(ASGIHandler=ASGIHandler)
    try:
        return asgi.get_asgi_application()
    finally:
        vars(asgi).update(ASGIHandler=DjangoASGIHandler)
