import asyncio
import socket
import time
from contextlib import suppress
from itertools import count

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient
from prometheus_client import Counter, Gauge, Histogram, MetricsHandler
from pytest_django import Settings

from serving import metrics

pytestmark = pytest.mark.usefixtures("own_middleware")


def value(metric: Counter | Gauge | Histogram, **labels: str) -> float:
    """Of the first sample that has these labels."""
    samples = [sample for family in metric.collect() for sample in family.samples]
    return next((s.value for s in samples if labels.items() <= s.labels.items()), 0)


def counted(method: str, route: str, status: str, outcome: str) -> tuple[float, float]:
    labels = {"http_request_method": method, "http_route": route}
    labels["http_response_status_code"] = status
    duration = value(metrics.DURATION, **labels, le="+Inf")
    return value(metrics.REQUESTS, **labels, outcome=outcome), duration


@pytest.mark.parametrize(
    ("method", "path", "labels"),
    [
        ("GET", "/answer/201/", ("GET", "/answer/<int:status>/", "201")),
        ("GET", "/nowhere/", ("GET", "unmatched", "404")),
        ("BREW", "/answer/200/", ("_OTHER", "/answer/<int:status>/", "200")),
    ],
)
async def test_request_is_counted_and_no_client_makes_series(
    async_client: AsyncClient, method: str, path: str, labels: tuple[str, str, str]
) -> None:
    requests, durations = counted(*labels, "completed")
    await async_client.generic(method, path)
    assert counted(*labels, "completed") == (requests + 1, durations + 1)


async def test_client_that_leaves_is_an_outcome(async_client: AsyncClient) -> None:
    labels = ("GET", "/leave/", "499", "disconnected")
    requests, durations = counted(*labels)
    with suppress(asyncio.CancelledError):
        await asyncio.create_task(async_client.get("/leave/"))
    assert counted(*labels) == (requests + 1, durations + 1)


@pytest.mark.parametrize(
    ("address", "answered"),
    [("127.0.0.1", True), ("10.1.2.3", True), ("100.64.0.9", True), ("8.8.8.8", False)],
)
def test_client_with_a_public_address_gets_no_metrics(
    address: str, answered: bool
) -> None:
    with metrics.MetricsServer(("127.0.0.1", 0), MetricsHandler) as server:
        assert server.verify_request(None, (address, 40000)) is answered


def test_port_in_use_is_tried_until_it_is_free_and_logged_once(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    attempts, served = count(), []

    class Server(metrics.MetricsServer):
        def server_bind(self) -> None:
            if next(attempts) == 2 * metrics.PATIENCE:
                taken.close()
            super().server_bind()

        def serve_forever(self, poll_interval: float = 0.5) -> None:
            served.append(self.server_address[1])
            self.server_close()

    monkeypatch.setattr(metrics, "MetricsServer", Server)
    monkeypatch.setattr(metrics, "INTERVAL", 0)
    with socket.create_server(("", 0)) as taken:
        settings.METRICS_PORT = port = taken.getsockname()[1]
        metrics.listen()
    assert served == [port]
    assert caplog.text.count("No metrics on port") == 1


async def test_probe_is_not_counted(async_client: AsyncClient) -> None:
    labels = ("GET", "unmatched", "200", "completed")
    before = counted(*labels)
    await async_client.get("/livez")
    assert counted(*labels) == before


async def test_requests_in_flight_and_the_lag_of_the_loop_are_sampled(
    async_client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "INTERVAL", 0.001)
    # As uvicorn loads it with one worker: before the event loop runs.
    await asyncio.to_thread(async_client.handler.load_middleware, is_async=True)
    before = value(metrics.LAG, le="+Inf")
    request = asyncio.create_task(async_client.get("/wait/"))
    async with asyncio.timeout(10):
        for in_flight in (1, 0):
            while value(metrics.ACTIVE) != in_flight:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            request.cancel()
    await asyncio.wait([request])
    assert value(metrics.LAG, le="+Inf") > before


async def test_long_block_of_the_loop_weighs_more_than_a_short_one() -> None:
    async def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    middleware = metrics.MetricsMiddleware(view)
    before = value(metrics.LAG, le="5.0"), value(metrics.LAG, le="+Inf")
    middleware.sample(asyncio.get_running_loop(), time.perf_counter() - 10)
    assert value(metrics.LAG, le="5.0") - before[0] >= 20
    assert value(metrics.LAG, le="+Inf") - before[1] >= 41
