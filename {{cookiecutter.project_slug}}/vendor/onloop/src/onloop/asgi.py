import logging

import django
from django.core.handlers.asgi import ASGIHandler as DjangoASGIHandler

from onloop import _compat

logger = logging.getLogger("onloop.asgi")


def get_asgi_application() -> DjangoASGIHandler:
    """Set Django up and return its ASGI handler, without needless threads.

    On a version of Django or asgiref that onloop does not know, it is Django's own
    handler, and a warning says so.
    """
    django.setup(set_prefix=False)
    if _compat.PROBLEM:
        logger.warning(
            "Django's own handler serves, with a thread for each request: onloop "
            "needs an update, for %s",
            _compat.PROBLEM,
        )
        return DjangoASGIHandler()
    from onloop.handler import ASGIHandler

    return ASGIHandler()
