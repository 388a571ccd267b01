import pytest
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient
from django.urls import path
from pytest_django import Settings

from serving.environment import CONDITIONS
from serving.middleware import HeaderMiddleware

pytestmark = pytest.mark.urls(__name__)


async def answer(request: HttpRequest, status: int) -> HttpResponse:
    if status == 500:
        raise RuntimeError("the view fails")
    return HttpResponse(status=status)


async def own(request: HttpRequest) -> HttpResponse:
    return HttpResponse(headers={"x-status": "the view's"})


urlpatterns = [path("answer/<int:status>/", answer), path("own/", own)]


@pytest.fixture(autouse=True)
def header(settings: Settings, async_client: AsyncClient) -> None:
    settings.RESPONSE_HEADER = "X-Status: OK"
    async_client.raise_request_exception = False


@pytest.mark.parametrize("status", [200, 201, 404, 500])
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
    async_client: AsyncClient,
    settings: Settings,
    condition: str,
    statuses: list[int],
    status: int,
) -> None:
    settings.RESPONSE_HEADER_WHEN = condition
    response = await async_client.get(f"/answer/{status}/")
    assert response.status_code == status
    assert response.headers.get("X-Status") == ("OK" if status in statuses else None)


def test_every_condition_is_tested() -> None:
    assert list(CONDITIONS) == ["status-200", "success", "always", "never"]


async def test_header_of_the_view_is_kept(
    async_client: AsyncClient, settings: Settings
) -> None:
    settings.RESPONSE_HEADER_WHEN = "always"
    response = await async_client.get("/own/")
    assert response.headers["X-Status"] == "the view's"


async def test_value_may_hold_colons_and_quotes(
    async_client: AsyncClient, settings: Settings
) -> None:
    settings.RESPONSE_HEADER = 'X-Quoted:  a:"b" \\c '
    settings.RESPONSE_HEADER_WHEN = "always"
    response = await async_client.get("/own/")
    assert response.headers["X-Quoted"] == 'a:"b" \\c'


@pytest.mark.parametrize(
    "header",
    [
        "X-Status",
        "X Status: OK",
        "X-Status : OK",
        ": OK",
        "X-Status:",
        "X-Status: a\nX-Other: b",
        "X-Status: caf\u00e9",
        "X-St\u00e4tus: OK",
        "Content-Length: 1",
    ],
)
async def test_malformed_header_is_refused(settings: Settings, header: str) -> None:
    settings.RESPONSE_HEADER = header
    with pytest.raises(ImproperlyConfigured, match=r"RESPONSE_HEADER=.*is refused"):
        HeaderMiddleware(own)


async def test_unknown_condition_is_refused(settings: Settings) -> None:
    settings.RESPONSE_HEADER_WHEN = "sometimes"
    with pytest.raises(ImproperlyConfigured, match=r"'sometimes'.*status-200"):
        HeaderMiddleware(own)
