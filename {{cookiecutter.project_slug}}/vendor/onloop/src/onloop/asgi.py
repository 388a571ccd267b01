import logging

import django
from django.core import asgi
from django.core.handlers.asgi import ASGIHandler as DjangoASGIHandler

from onloop import _compat

logger = logging.getLogger("onloop.asgi")


def get_asgi_application() -> DjangoASGIHandler:
    """Set Django up and return its ASGI handler, without needless threads.

    On a version of Django or asgiref that onloop does not know, it is Django's own
    handler, and a warning says so. Where an instrumentation has replaced Django's
    function of this name, it is what that makes of the handler.
    """
    if _compat.PROBLEM:
        application = asgi.get_asgi_application()
        logger.warning(
            "Django's own handler serves, with a thread for each request: onloop "
            "needs an update, for %s",
            _compat.PROBLEM,
        )
        return application
    from onloop.handler import ASGIHandler

    if _compat.defined_in(asgi.get_asgi_application, asgi):
        django.setup(set_prefix=False)
        return ASGIHandler()
    # Django's own is somewhere in the other, and makes a handler of this name.
    vars(asgi).update(ASGIHandler=ASGIHandler)
    try:
        return asgi.get_asgi_application()
    finally:
        vars(asgi).update(ASGIHandler=DjangoASGIHandler)
