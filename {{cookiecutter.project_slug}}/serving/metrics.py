"""Metrics for Prometheus: the requests, and what they wait for."""

import asyncio
import logging
import os
import time
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from contextvars import Context
from functools import cache
from importlib import import_module
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from socketserver import ThreadingTCPServer
from threading import Thread
from typing import Any

from django.conf import settings
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from onloop.logging import dropped_lines
from onloop.outcome import RequestEnd
from onloop.threads import thread_usage
from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    MetricsHandler,
    disable_created_metrics,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from config.environment import refused
from serving.health import PROBES, GetResponse
from serving.middleware import TimingMiddleware

logger = logging.getLogger("serving.metrics")
# *_created would be a fifth of the series, and several workers have none of them.
disable_created_metrics()  # type: ignore[no-untyped-call]
# The folder that several workers share; prometheus_client reads the variable too.
if shared := os.environ.get("PROMETHEUS_MULTIPROC_DIR", ""):
    try:
        fcntl: Any = import_module("fcntl")  # Windows has none
        Path(shared).mkdir(parents=True, exist_ok=True)
        # Each worker opens it; the one that locks it serves the metrics of all.
        LOCK = os.open(f"{shared}/{settings.METRICS_PORT}.lock", os.O_CREAT | os.O_RDWR)
    except (ImportError, OSError) as error:
        hint = f"use a folder that can be written ({error})"
        raise refused("PROMETHEUS_MULTIPROC_DIR", shared, hint) from None

INTERVAL = 0.25  # seconds between samples of what is not measured by request
# Attempts to bind METRICS_PORT, one in each interval, before an error is logged: the
# process that this one replaces has 8 seconds to stop.
PATIENCE = 40
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"}
# Names and buckets are OpenTelemetry's.
LABELS = ("http_request_method", "http_route", "http_response_status_code")
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
DURATION = Histogram(
    "http_server_request_duration_seconds",
    "Duration of requests, of streams to their last byte.",
    LABELS,
    buckets=BUCKETS,
)
REQUESTS = Counter(
    "http_server_requests_total",
    "Requests, by how they ended.",
    (*LABELS, "outcome"),
)
LAG = Histogram(
    "event_loop_lag_seconds",
    "How late the event loop called a timer.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
DROPPED = Counter("log_lines_dropped_total", "Log lines dropped: the queue was full.")
ACTIVE, IN_USE, WAITING, LIMIT = (
    Gauge(name, text, multiprocess_mode="livesum")
    for name, text in (
        ("http_server_active_requests", "Requests in flight."),
        ("request_threads_in_use", "Threads that requests hold."),
        ("request_threads_waiting", "Requests that wait for a thread."),
        ("request_threads_limit", "REQUEST_THREADS."),
    )
)


class MetricsMiddleware(TimingMiddleware):
    """A TimingMiddleware that also counts each measurement."""

    active = dropped = 0
    samples = False

    def __init__(self, get_response: GetResponse) -> None:
        super().__init__(get_response)
        # A cache: labels() would look up each child again for each request.
        self.children: dict[tuple[object, ...], tuple[Counter, Histogram]] = {}
        LIMIT.set(settings.REQUEST_THREADS)
        serve()
        # uvicorn loads a worker's application on the loop, that of one process before.
        with suppress(RuntimeError):
            self.start_sampling()

    def __call__(self, request: HttpRequest) -> Coroutine[Any, Any, HttpResponseBase]:
        if not self.samples:
            self.start_sampling()
        self.active += 1
        return super().__call__(request)

    def log(self, request: HttpRequest, start: float, end: RequestEnd) -> None:
        self.active -= 1
        self.process_abort(request, start, end)

    def process_abort(
        self, request: HttpRequest, start: float, end: RequestEnd
    ) -> None:
        if request.path_info not in PROBES:
            match = request.resolver_match
            route = match.route if match else None
            key = request.method, route, end.status, end.outcome
            counter, histogram = self.children.get(key) or self.make_children(*key)
            counter.inc()
            histogram.observe(end.ended - start)
        super().log(request, start, end)

    def make_children(
        self, method: str | None, route: str | None, status: int | None, outcome: str
    ) -> tuple[Counter, Histogram]:
        """Clients choose neither routes nor known methods, so they create no series."""
        labels = (
            method if method in METHODS else "_OTHER",
            "unmatched" if route is None else f"/{route}",
            "" if status is None else str(status),
        )
        children = REQUESTS.labels(*labels, outcome), DURATION.labels(*labels)
        if method in METHODS:
            self.children[method, route, status, outcome] = children
        return children

    def start_sampling(self) -> None:
        """Start a timer of the event loop, which ends with it."""
        # In an empty context: the request's would live as long as the loop.
        Context().run(self.sample, asyncio.get_running_loop(), time.perf_counter())
        self.samples = True

    def sample(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        lag = max(0.0, time.perf_counter() - due)
        # A value for each interval, or a block of any length would count as one moment.
        while lag >= 0:
            LAG.observe(lag)
            lag -= INTERVAL
        in_use, waiting = thread_usage()
        ACTIVE.set(self.active)
        IN_USE.set(in_use)
        WAITING.set(waiting)
        dropped = dropped_lines()
        DROPPED.inc(max(0, dropped - self.dropped))
        self.dropped = dropped
        due = time.perf_counter() + INTERVAL
        loop.call_later(INTERVAL, self.sample, loop, due)


class AllWorkers(MultiProcessCollector):
    def collect(self) -> Iterable[Metric]:
        """Keep the counters of workers that have ended, or their sum would fall."""
        for path in Path(shared).glob("gauge_live*.db"):
            pid = int(path.stem.rpartition("_")[2])
            try:
                os.kill(pid, 0)
            except OSError:
                # Another scrape may have been faster.
                with suppress(FileNotFoundError):
                    mark_process_dead(pid)  # type: ignore[no-untyped-call]
        metrics: Iterable[Metric] = super().collect()  # type: ignore[no-untyped-call]
        return metrics


class MetricsServer(ThreadingTCPServer):
    daemon_threads = True
    # On Windows it would share the port with whoever listens there.
    allow_reuse_address = os.name == "posix"

    def verify_request(self, request: object, client_address: Any) -> bool:
        """Refuse public addresses, in case the port is open to the world."""
        return not ip_address(client_address[0]).is_global


@cache
def serve() -> None:
    """Serve in a thread, once in each process; METRICS_PORT=0 serves nothing."""
    if settings.METRICS_PORT:
        Thread(target=listen, name="metrics", daemon=True).start()


def listen() -> None:
    port = settings.METRICS_PORT
    registry = REGISTRY
    if shared:
        registry = CollectorRegistry()
        registry.register(AllWorkers(None))  # type: ignore[no-untyped-call]
        # Waits until the worker that has the lock ends.
        fcntl.flock(LOCK, fcntl.LOCK_EX)
    for attempt in count(1):
        # First, because commands that load the middleware end soon.
        time.sleep(INTERVAL)
        try:
            server = MetricsServer(("", port), MetricsHandler.factory(registry))
        except OSError as error:
            if attempt == PATIENCE:
                hint = "set another METRICS_PORT; workers need PROMETHEUS_MULTIPROC_DIR"
                logger.error(
                    "No metrics on port %d: %s (%s)", port, error.strerror, hint
                )
        else:
            return server.serve_forever()
