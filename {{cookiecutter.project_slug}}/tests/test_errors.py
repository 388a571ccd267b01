import pytest
from django.test import AsyncClient, RequestFactory

from config import urls


@pytest.mark.parametrize("status", [400, 403, 404, 500, 503, 504])
def test_error_is_a_page_for_browsers(rf: RequestFactory, status: int) -> None:
    headers = {"Accept": "text/html,*/*;q=0.8", "X-Request-ID": "abc-1"}
    page = getattr(urls, f"handler{status}")(rf.get("/", headers=headers))
    assert (page.status_code, page["Content-Type"][:9]) == (status, "text/html")
    assert "abc-1" in page.content.decode()


async def test_error_is_json_for_programs(async_client: AsyncClient) -> None:
    response = await async_client.get("/nowhere/")
    assert response["Content-Type"] == "application/problem+json"
    problem = {"type": "about:blank", "title": "Not Found", "status": 404}
    assert response.json() == problem | {"request_id": response["X-Request-ID"]}
