import pytest
from django.test import AsyncClient
from pytest_django import Settings

from serving import health
from tests.conftest import LogLines

pytestmark = pytest.mark.usefixtures("own_middleware")


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_live_and_ready_without_a_line(
    async_client: AsyncClient, log_lines: LogLines, path: str
) -> None:
    response = await async_client.get(path)
    assert (response.status_code, response.json()) == (200, {"status": "ok"})
    assert response.headers["Cache-Control"] == "no-store"
    assert log_lines("serving.timing") == []


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
