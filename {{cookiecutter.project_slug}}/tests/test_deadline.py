import pytest
from django.test import AsyncClient
from pytest_django import Settings

from tests.conftest import LogLines

pytestmark = pytest.mark.usefixtures("own_middleware")


async def test_request_is_answered_504_when_the_deadline_passes(
    async_client: AsyncClient, settings: Settings, log_lines: LogLines
) -> None:
    settings.REQUEST_TIMEOUT = 0.01
    assert (await async_client.get("/wait/")).status_code == 504
    [line] = log_lines("serving.timing")
    assert (line["status"], line["outcome"]) == (504, "completed")


async def test_request_in_time_and_its_own_timeout_error_are_untouched(
    async_client: AsyncClient, settings: Settings
) -> None:
    settings.REQUEST_TIMEOUT = 10
    async_client.raise_request_exception = False
    for status in (200, 500):
        assert (await async_client.get(f"/answer/{status}/")).status_code == status
