import asyncio

import pytest
from django.core.exceptions import MiddlewareNotUsed
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient
from django.urls import path
from pytest_django import Settings

from serving.middleware import deadline
from tests.server import OUTCOMES, Serve
from tests.test_outcomes import check, logged

pytestmark = pytest.mark.urls(__name__)


async def slow(request: HttpRequest) -> HttpResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def own(request: HttpRequest) -> HttpResponse:
    raise TimeoutError("the view's")


async def quick(request: HttpRequest) -> HttpResponse:
    return HttpResponse("in time")


urlpatterns = [path("slow/", slow), path("own/", own), path("quick/", quick)]


async def test_request_is_answered_504_when_the_deadline_passes(
    async_client: AsyncClient,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings.REQUEST_TIMEOUT = 0.01
    response = await async_client.get("/slow/")
    assert response.status_code == 504
    [record] = [r for r in caplog.records if r.name == "serving.timing"]
    assert vars(record)["status"] == 504
    assert vars(record)["outcome"] == "completed"


async def test_request_in_time_is_untouched(
    async_client: AsyncClient, settings: Settings
) -> None:
    settings.REQUEST_TIMEOUT = 10
    response = await async_client.get("/quick/")
    assert response.content == b"in time"


async def test_timeout_error_of_the_view_is_not_the_deadline(
    async_client: AsyncClient, settings: Settings
) -> None:
    settings.REQUEST_TIMEOUT = 10
    async_client.raise_request_exception = False
    assert (await async_client.get("/own/")).status_code == 500


async def test_deadline_is_not_used_when_unset(settings: Settings) -> None:
    settings.REQUEST_TIMEOUT = None
    with pytest.raises(MiddlewareNotUsed):
        deadline(quick)


def test_late_request_is_one_line_of_a_completed_request(serve: Serve) -> None:
    environment = {"LOG_FORMAT": "json", "REQUEST_TIMEOUT": "0.05"}
    with serve(*OUTCOMES, "--port", **environment) as server:
        assert server.get("/wait/", request_id="late").status == 504
        check(server, "late", 504, "completed")
        assert logged(server, "cleaned up", "late")
