import logging
from collections.abc import Callable
from typing import Any

import pytest
import structlog
from asgiref.sync import sync_to_async
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client
from django.urls import path

pytestmark = pytest.mark.urls(__name__)
logger = logging.getLogger("shop")


async def order(request: HttpRequest) -> HttpResponse:
    logger.info("in the view")
    await sync_to_async(logger.info)("in a thread")
    await structlog.get_logger("shop").ainfo("by structlog", item=3)
    return HttpResponse()


urlpatterns = [path("order/", order)]
LogLines = Callable[[], list[dict[str, Any]]]


async def test_valid_request_id_is_accepted_and_returned(
    async_client: AsyncClient,
) -> None:
    response = await async_client.get("/order/", headers={"X-Request-ID": "a.B_9-"})
    assert response.headers["X-Request-ID"] == "a.B_9-"


@pytest.mark.parametrize("request_id", ["", "a b", 'a"b', "a\nb", "\u00e9", "x" * 129])
async def test_invalid_request_id_is_replaced(
    async_client: AsyncClient, request_id: str
) -> None:
    response = await async_client.get("/order/", headers={"X-Request-ID": request_id})
    assert response.headers["X-Request-ID"] != request_id
    assert len(response.headers["X-Request-ID"]) == 32


async def test_each_request_without_an_id_gets_its_own(
    async_client: AsyncClient,
) -> None:
    ids = {(await async_client.get("/order/"))["X-Request-ID"] for _ in range(3)}
    assert len(ids) == 3


async def test_request_id_is_in_every_line_of_the_request(
    async_client: AsyncClient, log_lines: LogLines
) -> None:
    await async_client.get("/order/", headers={"X-Request-ID": "abc"})
    lines = {line["message"]: line.get("request_id") for line in log_lines()}
    assert lines["in the view"] == "abc"
    assert lines["in a thread"] == "abc"
    assert lines["by structlog"] == "abc"
    assert set(lines.values()) == {"abc"}


def test_request_id_reaches_the_lines_under_the_sync_client(
    client: Client, log_lines: LogLines
) -> None:
    response = client.get("/order/", headers={"X-Request-ID": "abc"})
    assert response["X-Request-ID"] == "abc"
    assert {line["request_id"] for line in log_lines()} == {"abc"}


async def test_before_and_after_response_stand_around_the_view(
    async_client: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "serving.request"):
        await async_client.get("/order/")
    messages = [r.getMessage() for r in caplog.records if r.name != "serving.timing"]
    assert messages[0] == "Before response"
    assert messages[1] == "in the view"
    assert messages[-1] == "After response"


async def test_before_and_after_response_are_silent_above_debug(
    async_client: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    await async_client.get("/order/")
    assert "Before response" not in caplog.messages
    assert "After response" not in caplog.messages
