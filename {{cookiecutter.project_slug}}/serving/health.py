"""The platform's probes: is the service alive, and is it ready for traffic?"""

from collections.abc import Awaitable, Callable

from asgiref.sync import markcoroutinefunction
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.decorators import async_only_middleware
from onloop.health import HealthCheck, database, migrations, preload

GetResponse = Callable[[HttpRequest], Awaitable[HttpResponseBase]]
PROBES = {"/livez", "/readyz"}


@async_only_middleware
def probes(get_response: GetResponse) -> GetResponse:
    """Goes before Django's middleware: probes use plain HTTP and any Host."""
    # A check is a function that returns what is wrong, or None. It may block.
    ready = HealthCheck(database, until_passed=[migrations, preload])
    views = {"/livez": HealthCheck(), "/readyz": ready}
    return markcoroutinefunction(
        lambda request: views.get(request.path_info, get_response)(request)
    )
