"""The latest requests, and what each of them did."""

import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import cache
from itertools import count
from typing import Any

from django.http import HttpRequest

from onloop import _hops, outcome, server_timing
from onloop.logging.formatter import IMMUTABLE, Formatter, bind_fields, bound_fields
from onloop.outcome import RequestEnd, observe

GetResponse = Callable[[HttpRequest], Awaitable[Any]]

# The panel's own requests are not shown.
APP_NAME = "onloop_panel"
# Log lines kept for each request.
MAX_LINES = 100

formatter = Formatter("text", "")


class Trace:
    """What a request does, and how it ended."""

    def __init__(self) -> None:
        self.lines: list[Any] = []
        # The number of hops, by what was called and from where.
        self.hops: dict[tuple[str, str], int] = {}
        self.metrics = server_timing.collect()
        _current.set(self)
        self.start = time.perf_counter()

    async def record(self, request: HttpRequest, get_response: GetResponse) -> Any:
        # As in a middleware, the time starts when the body has arrived.
        self.start = time.perf_counter()

        def on_end(end: RequestEnd) -> None:
            self.keep(request, end, observation.response)

        with observe(request, on_end) as observation:
            response = observation.response = await get_response(request)
        return response

    def keep(self, request: HttpRequest, end: RequestEnd, response: Any) -> None:
        """Called in the context of the request; keeps no reference to the request."""
        match = request.resolver_match
        if match is not None and APP_NAME in match.app_names:
            return
        self.number, self.ended, self.end = next(numbers), time.time(), end
        route = match and match.route
        self.request = {"method": request.method, "path": request.path, "route": route}
        self.streamed = response is None or response.streaming
        self.fields = bound_fields()
        # A middleware may have called collect() too.
        self.other_metrics = server_timing.current() or self.metrics
        latest.append(self)

    def as_data(self) -> dict[str, Any]:
        first_byte = self.end.first_byte if self.streamed else self.end.ended
        collected = {self.metrics, self.other_metrics}
        return {
            "number": self.number,
            # Seconds since 1970; those below are seconds too.
            "ended": self.ended,
            **self.request,
            "status": self.end.status,
            "outcome": self.end.outcome,
            "duration": self.end.ended - self.start,
            "first_byte": first_byte and first_byte - self.start,
            "database": sum(metrics.database_seconds for metrics in collected),
            "queries": sum(metrics.queries for metrics in collected),
            # Of any type, such as UUID.
            "request_id": str(self.fields.get("request_id") or ""),
            "hops": [(times, *hop) for hop, times in list(self.hops.items())],
        }

    def log(self) -> str:
        """The log lines as text. Binds fields, so call it in a copy of the context."""
        bind_fields(**self.fields)
        return "\n".join(map(text_of, self.lines))


# Numbers keep growing when the process restarts.
latest: deque[Trace] = deque(maxlen=200)
numbers = count(int(time.time() * 1000))
_current: ContextVar[Trace | None] = ContextVar("onloop_trace", default=None)


class LineHandler(logging.NullHandler):
    """A NullHandler, so that onloop.logging knows that it never blocks."""

    def handle(self, record: logging.LogRecord) -> bool:
        trace = _current.get()
        if trace is not None and len(trace.lines) < MAX_LINES:
            # A snapshot takes several times as long, so it is taken only if a value may
            # change, or would keep the request. Without arguments, args is a tuple too.
            values = (vars(record) | {"args": record.args or None}).values()
            plain = IMMUTABLE.issuperset(map(type, values))
            trace.lines.append(record if plain else formatter.take_snapshot(record))
        return True


def text_of(line: Any) -> str:
    if isinstance(line, logging.LogRecord):
        line = formatter.take_snapshot(line)
    # The panel shows one service, and only the formatter writes a tab.
    return formatter.format_snapshot(line).replace('\tservice=""', " ", 1)


def count_hop(what: str, where: str) -> None:
    if trace := _current.get():
        trace.hops[what, where] = trace.hops.get((what, where), 0) + 1


@cache
def start() -> None:
    """Trace each request that onloop's handler serves from now on."""
    outcome.start_trace = Trace
    logging.getLogger().addHandler(LineHandler())
    server_timing.watch_queries()
    _hops.watch(count_hop)
