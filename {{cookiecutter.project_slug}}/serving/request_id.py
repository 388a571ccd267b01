"""The id of a request: in X-Request-ID, and on each log line of the request."""

import logging
import random
import re
from contextvars import ContextVar

import structlog
from django.http import HttpRequest

is_valid_request_id = re.compile(r"[A-Za-z0-9._-]{1,128}").fullmatch
# Never unset: what is logged after the response started belongs to the request too.
bound_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def bind_request_id(request: HttpRequest) -> str:
    """Bind the request's id to every line that is logged from here on; return it."""
    request_id: str = request.META.get("HTTP_X_REQUEST_ID", "")
    if not is_valid_request_id(request_id):
        request_id = f"{random.getrandbits(128):032x}"
        # For whoever else asks for it.
        request.META["HTTP_X_REQUEST_ID"] = request_id
    # A server may handle the next request of a connection in a copy of this context.
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=request_id)
    bound_id.set(request_id)
    return request_id


class RequestIDFilter(logging.Filter):
    """Keep the id on each line when others clear structlog's context or bind theirs."""

    def filter(self, record: logging.LogRecord) -> bool:
        if request_id := bound_id.get():
            vars(record)["request_id"] = request_id
        return True
