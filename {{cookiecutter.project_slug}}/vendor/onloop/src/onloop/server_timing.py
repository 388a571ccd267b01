"""Metrics of the current request for Server-Timing: w3.org/TR/server-timing."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from django.db import connections
from django.db.backends.signals import connection_created
from django.http.response import HttpResponseBase

# RFC 9110, section 5.6.2.
_is_token = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch

_current: ContextVar["Metrics | None"] = ContextVar("onloop_metrics", default=None)


class Metrics:
    def __init__(self) -> None:
        self.entries: list[str] = []
        self.queries = 0
        self.database_seconds = 0.0

    def add(self, name: str, seconds: float, description: str = "") -> None:
        entry = f"{name};dur={seconds * 1000:.1f}"
        if description:
            quoted = re.sub(r'(["\\])', r"\\\1", description)
            entry += f';desc="{quoted}"'
        self.entries.append(entry)

    def send(self, response: HttpResponseBase, seconds: float) -> None:
        """Set the header: entries of the view first, `app` (the whole request) last."""
        if self.queries:
            plural = "query" if self.queries == 1 else "queries"
            self.add("db", self.database_seconds, f"{self.queries} {plural}")
        self.add("app", seconds)
        entries = [response.headers.get("Server-Timing"), *self.entries]
        response.headers["Server-Timing"] = ", ".join(filter(None, entries))


def collect() -> Metrics:
    """Collect the spans and queries of the current request from here on."""
    metrics = Metrics()
    _current.set(metrics)
    return metrics


def current() -> Metrics | None:
    """The metrics of the latest collect() in this context."""
    return _current.get()


@contextmanager
def span(name: str, description: str = "") -> Iterator[None]:
    """Measure a block for Server-Timing, if it is sent: `with span("cache"): ...`.

    Raises ValueError unless the name is a token (RFC 9110), and the description
    printable ASCII.
    """
    if not _is_token(name):
        raise ValueError(f"{name!r} is not a metric name: use a token (RFC 9110)")
    if not (description.isascii() and description.isprintable()):
        raise ValueError(f"{description!r} must be printable ASCII")
    start = time.perf_counter()
    try:
        yield
    finally:
        if metrics := current():
            metrics.add(name, time.perf_counter() - start, description)


def watch_queries() -> None:
    """Count the queries of each request in any thread; may be called repeatedly."""
    connection_created.connect(watch_connection)
    for connection in connections.all(initialized_only=True):
        watch_connection(connection=connection)


def watch_connection(connection: Any, **kwargs: object) -> None:
    if watch_query not in connection.execute_wrappers:
        connection.execute_wrappers.insert(0, watch_query)


def watch_query(execute: Callable[..., Any], *args: Any) -> Any:
    start = time.perf_counter()
    try:
        return execute(*args)
    finally:
        if metrics := current():
            metrics.queries += 1
            metrics.database_seconds += time.perf_counter() - start
