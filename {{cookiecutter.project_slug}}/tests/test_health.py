import pytest
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


async def test_what_is_not_ready_is_named_and_logged(
    async_client: AsyncClient, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    def database() -> str:
        return "no space left"

    monkeypatch.setattr(health, "database", database)
    response = await async_client.get("/readyz")
    assert (response.status_code, response.json()["status"]) == (503, "failed")
    assert response.json()["failed"] == {"database": "no space left"}
    levels = [line["level"] for line in log_lines("serving.timing")]
    assert levels == ["warning"]


async def test_probe_needs_no_allowed_host_and_no_https(
    async_client: AsyncClient, settings: Settings
) -> None:
    settings.MIDDLEWARE += ["django.middleware.security.SecurityMiddleware"]
    settings.SECURE_SSL_REDIRECT = True
    for path, status in (("/livez", 200), ("/log/", 400)):
        response = await async_client.get(path, headers={"host": "10.0.0.7:8000"})
        assert response.status_code == status
