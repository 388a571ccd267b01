"""The example API; delete this file together with it."""

import asyncio
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model
from django.db import connection
from django.test import AsyncClient
from django.urls import reverse

from home.api import has_users
from home.models import Note, Revision

pytestmark = pytest.mark.django_db
NOTES = reverse("api:list_notes")
JSON = "application/json"


@pytest.fixture
async def client(async_client: AsyncClient) -> AsyncClient:
    if has_users:
        user = await get_user_model()._default_manager.acreate(username="me")
        await async_client.aforce_login(user)
    return async_client


@pytest.fixture
async def note(client: AsyncClient) -> dict[str, Any]:
    created: dict[str, Any] = (await client.post(NOTES, NEW, JSON)).json()
    return created


NEW = {"title": "Milk", "text": "two bottles"}


async def test_list_is_in_pages_with_the_newest_first(
    async_client: AsyncClient,
) -> None:
    queries = []

    def count(execute: Callable[..., Any], sql: str, *args: Any) -> Any:
        queries.append(sql)
        return execute(sql, *args)

    await Note.objects.abulk_create(Note(title=f"{n}") for n in range(5))
    with connection.execute_wrapper(count):
        page = (await async_client.get(f"{NOTES}?page=2&page_size=2")).json()
    assert page["count"] == 5
    assert [note["title"] for note in page["items"]] == ["2", "1"]
    # One for the page and one for the count, however many notes there are.
    assert len(queries) == 2


async def test_note_is_created_changed_and_deleted(
    client: AsyncClient, note: dict[str, Any]
) -> None:
    url = f"{NOTES}/{note['id']}"
    assert note == {"id": note["id"], "version": 1, **NEW}
    changed = await client.patch(url, {"text": "one", "version": 1}, JSON)
    assert changed.json() == note | {"text": "one", "version": 2}
    assert (await client.get(url)).json() == changed.json()
    revisions = Revision.objects.order_by("version").values_list("version", "text")
    assert [r async for r in revisions] == [(1, "two bottles"), (2, "one")]
    assert (await client.delete(url)).status_code == 204
    assert (await client.get(url)).status_code == 404
    assert (await client.delete(url)).status_code == 404


async def test_change_of_an_outdated_version_is_refused(
    client: AsyncClient, note: dict[str, Any]
) -> None:
    url = f"{NOTES}/{note['id']}"
    changes = [
        await client.patch(url, {"text": text, "version": 1}, JSON) for text in "ab"
    ]
    assert [response.status_code for response in changes] == [200, 409]
    assert (await client.get(url)).json() == changes[0].json()
    assert await Revision.objects.acount() == 2


async def test_second_note_with_the_same_title_is_refused(
    client: AsyncClient, note: dict[str, Any]
) -> None:
    assert (await client.post(NOTES, NEW, JSON)).status_code == 409


@pytest.mark.parametrize(
    ("field", "value"),
    [("title", ""), ("title", "x" * 101), ("text", "\0"), ("text", "\ud800")],
)
async def test_invalid_note_is_refused_and_the_answer_names_the_field(
    client: AsyncClient, field: str, value: str
) -> None:
    response = await client.post(NOTES, NEW | {field: value}, JSON)
    assert response.status_code == 422
    assert f'"{field}"]' in response.content.decode()


@pytest.mark.parametrize("path", ["?page=0", f"?page={10**30}", f"/{10**30}", "/x"])
async def test_impossible_page_or_id_is_a_client_error(
    async_client: AsyncClient, path: str
) -> None:
    response = await async_client.get(f"{NOTES}{path}")
    assert response.status_code in (404, 422)


async def test_writing_needs_a_login_and_its_token(client: AsyncClient) -> None:
    stranger = AsyncClient()
    expected = 401 if has_users else 201
    assert (await stranger.post(NOTES, NEW, JSON)).status_code == expected
    # Like a page of another site, in the browser of somebody who has logged in.
    client.handler.enforce_csrf_checks = True
    response = await client.post(NOTES, NEW | {"title": "Tea"}, JSON)
    assert response.status_code == (403 if has_users else 201)


async def test_cancelled_change_is_written_as_a_whole(
    client: AsyncClient, note: dict[str, Any]
) -> None:
    loop, half_way = asyncio.get_running_loop(), asyncio.Event()
    resume = threading.Event()

    def pause(execute: Callable[..., Any], sql: str, *args: Any) -> Any:
        result = execute(sql, *args)
        if sql.startswith("UPDATE"):
            loop.call_soon_threadsafe(half_way.set)
            resume.wait(10)
        return result

    url = f"{NOTES}/{note['id']}"
    with connection.execute_wrapper(pause):
        request = client.patch(url, {"text": "one", "version": 1}, JSON)
        task = asyncio.create_task(request)
        await half_way.wait()
        task.cancel()
        resume.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        written = await sync_to_async(Note.objects.get)(pk=note["id"])
    assert written.version == await Revision.objects.acount() == 2


async def test_ui_loads_nothing_from_elsewhere(async_client: AsyncClient) -> None:
    response = await async_client.get(reverse("api:openapi-view"))
    page = response.content.decode()
    for file in re.findall(r'(?:src|href)="(.*?)"', page):
        found = await async_client.get(file)
        # Otherwise its line would be logged during a later test.
        await sync_to_async(found.close)()
        assert found.status_code == 200, file
    # The content security policy would forbid them.
    assert not re.search(r"<(style|script)>|\son\w+=|\sstyle=", page)
    schema = (await async_client.get(reverse("api:openapi-json"))).json()
    assert NOTES in schema["paths"]


@pytest.mark.parametrize(
    ("status", "method", "path"),
    [(404, "GET", "/0"), (404, "DELETE", "/0"), (422, "POST", ""), (422, "PATCH", "/0")]
    + [(405, method, "") for method in ("PUT", "DELETE", "OPTIONS")],
)
async def test_error_is_a_problem(
    client: AsyncClient, status: int, method: str, path: str
) -> None:
    response = await client.generic(method, f"{NOTES}{path}", "{}")
    assert response.status_code == status
    assert response["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert (problem["status"], "errors" in problem) == (status, status == 422)
    assert problem["request_id"] == response["X-Request-ID"]
    if status == 405:
        assert sorted(response["Allow"].split(", ")) == ["GET", "POST"]
