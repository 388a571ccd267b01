import pytest
from django.db import OperationalError
from django.db.migrations.executor import MigrationExecutor
from django.test import AsyncClient
from pytest_django import Settings

from serving import health
from tests.conftest import LogLines

pytestmark = pytest.mark.usefixtures("own_middleware")


async def test_live_without_a_database_and_without_a_line(
    async_client: AsyncClient, log_lines: LogLines
) -> None:
    response = await async_client.get("/livez")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})
    assert response.headers["Cache-Control"] == "no-store"
    assert log_lines("serving.timing") == []


@pytest.mark.django_db
async def test_ready_with_a_migrated_database(async_client: AsyncClient) -> None:
    response = await async_client.get("/readyz")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


async def failed(client: AsyncClient) -> dict[str, str]:
    response = await client.get("/readyz")
    assert (response.status_code, response.json()["status"]) == (503, "failed")
    return dict(response.json()["failed"])


async def test_failed_check_is_named_and_its_cause_only_logged(
    async_client: AsyncClient, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    def database() -> None:
        raise OperationalError("connection to 10.0.0.1 refused\n")

    monkeypatch.setattr(health, "database", database)
    assert await failed(async_client) == {"database": "it cannot be reached"}
    [line] = log_lines("onloop.health")
    assert line["message"] == "Not ready: database: connection to 10.0.0.1 refused"
    assert [line["level"] for line in log_lines("serving.timing")] == ["warning"]


@pytest.mark.django_db
async def test_unapplied_migration_is_named(
    async_client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = [("home.0001_initial", False), ("home.0002_more", False)]
    monkeypatch.setattr(MigrationExecutor, "migration_plan", lambda *args: plan)
    reason = "2 unapplied, the first is home.0001_initial"
    assert await failed(async_client) == {"migrations": reason}


async def test_probe_needs_no_allowed_host_and_no_https(
    async_client: AsyncClient, settings: Settings
) -> None:
    settings.MIDDLEWARE += ["django.middleware.security.SecurityMiddleware"]
    settings.SECURE_SSL_REDIRECT = True
    for path, status in (("/livez", 200), ("/log/", 400)):
        response = await async_client.get(path, headers={"host": "10.0.0.7:8000"})
        assert response.status_code == status
