import logging
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import OperationalError
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient

from serving import health
from serving.handler import Handler

Patch = pytest.MonkeyPatch


async def test_live_without_a_database(async_client: AsyncClient) -> None:
    response = await async_client.get("/livez")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.django_db(transaction=True)
async def test_ready_with_a_migrated_database(async_client: AsyncClient) -> None:
    response = await async_client.get("/readyz")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


async def failed(client: AsyncClient) -> dict[str, str]:
    response = await client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["status"] == "failed"
    return dict(response.json()["failed"])


async def test_database_away_is_told_and_its_cause_only_logged(
    async_client: AsyncClient,
    monkeypatch: Patch,
    log_lines: Callable[[], list[dict[str, Any]]],
) -> None:
    def database() -> None:
        raise OperationalError("connection to 10.0.0.1 refused\n")

    monkeypatch.setattr(health, "database", database)
    assert await failed(async_client) == {"database": "it cannot be reached"}
    assert "Not ready: database: connection to 10.0.0.1 refused" in [
        line["message"] for line in log_lines()
    ]


async def test_database_that_hangs_is_given_up_in_time(
    async_client: AsyncClient, monkeypatch: Patch
) -> None:
    def database() -> None:
        time.sleep(1)

    monkeypatch.setattr(health, "database", database)
    monkeypatch.setattr(health, "LIMIT", 0.1)
    start = time.monotonic()
    assert await failed(async_client) == {"database": "no answer within 0.1 seconds"}
    assert time.monotonic() - start < 0.9


@pytest.mark.django_db(transaction=True)
async def test_unapplied_migration_is_named(
    async_client: AsyncClient, monkeypatch: Patch
) -> None:
    plan = [("home.0001_initial", False), ("home.0002_more", False)]
    executor = "django.db.migrations.executor.MigrationExecutor"
    monkeypatch.setattr(f"{executor}.migration_plan", lambda *args: plan)
    assert await failed(async_client) == {
        "migrations": "2 unapplied, the first is home.0001_initial"
    }


@pytest.fixture
def heard(monkeypatch: Patch) -> Iterator[list[int]]:
    """The signals that reached a server's own handler."""
    heard: list[int] = []

    def server(number: int, frame: object) -> None:
        heard.append(number)

    monkeypatch.setattr(health, "stopping", False)
    before = signal.signal(signal.SIGTERM, server)
    yield heard
    signal.signal(signal.SIGTERM, before)


async def test_not_ready_but_alive_from_the_signal_on(
    async_client: AsyncClient, heard: list[int]
) -> None:
    handler = Handler()
    await handler.startup()
    try:
        signal.raise_signal(signal.SIGTERM)
        assert heard == [signal.SIGTERM]
        assert await failed(async_client) == {"server": "it shuts down"}
        assert (await async_client.get("/livez")).status_code == 200
    finally:
        await handler.shutdown()


@pytest.mark.usefixtures("heard")
async def test_shutdown_leaves_the_handlers_of_signals_as_they_were() -> None:
    before = signal.getsignal(signal.SIGTERM)
    handler = Handler()
    await handler.startup()
    assert signal.getsignal(signal.SIGTERM) != before
    await handler.shutdown()
    assert signal.getsignal(signal.SIGTERM) == before


async def test_probe_needs_no_allowed_host_and_no_https(
    async_client: AsyncClient, settings: Any
) -> None:
    settings.SECURE_SSL_REDIRECT = True
    address = {"host": "10.0.0.7:8000"}
    statuses = {
        path: (await async_client.get(path, headers=headers)).status_code
        for path, headers in (
            ("/livez", address),
            ("/hello/a/", {}),
            ("/hello/b/", address),
        )
    }
    assert statuses == {"/livez": 200, "/hello/a/": 301, "/hello/b/": 400}


@pytest.mark.parametrize(
    ("reason", "status", "level"), [("", 200, "DEBUG"), ("it stops", 503, "WARNING")]
)
async def test_probe_is_logged_at_debug_until_it_fails(
    async_client: AsyncClient,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: Patch,
    reason: str,
    status: int,
    level: str,
) -> None:
    async def probe(request: HttpRequest) -> HttpResponse:
        return HttpResponse(reason, status=status)

    monkeypatch.setitem(health.PROBES, "/livez", probe)
    with caplog.at_level(logging.DEBUG, "serving.timing"):
        await async_client.get("/livez")
    [record] = [r for r in caplog.records if r.name == "serving.timing"]
    assert record.levelname == level
