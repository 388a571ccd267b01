import pytest
from django.test import AsyncClient
from pytest_django import Settings

pytestmark = pytest.mark.usefixtures("own_middleware")


@pytest.mark.parametrize(
    ("condition", "statuses"),
    [
        ("status-200", [200]),
        ("success", [200, 201]),
        ("always", [200, 201, 404, 500]),
        ("never", []),
    ],
)
async def test_header_is_sent_when_its_condition_holds(
    async_client: AsyncClient, settings: Settings, condition: str, statuses: list[int]
) -> None:
    settings.RESPONSE_HEADER = 'X-Quoted: a:"b" \\c'
    settings.RESPONSE_HEADER_WHEN = condition
    async_client.raise_request_exception = False
    for status in (200, 201, 404, 500):
        response = await async_client.get(f"/answer/{status}/")
        assert response.status_code == status
        expected = 'a:"b" \\c' if status in statuses else None
        assert response.headers.get("X-Quoted") == expected


async def test_header_of_the_view_is_kept(
    async_client: AsyncClient, settings: Settings
) -> None:
    settings.RESPONSE_HEADER = "x-status: OK"
    settings.RESPONSE_HEADER_WHEN = "always"
    assert (await async_client.get("/headers/")).headers["X-Status"] == "own"
