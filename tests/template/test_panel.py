"""The live panel of a service in development, in a browser."""

import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Literal

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, expect

from tests.template.browser import Complaints, accessibility_problems
from tests.template.conftest import Bake
from tests.template.service import Server

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    # On the worker of test_admin.py, which has the browser.
    pytest.mark.xdist_group("admin"),
]

# A busy machine may take longer than five seconds.
expect.set_options(timeout=30_000)
# On a phone and a tablet, and on two screens that are wide enough for the table.
WIDTHS = (360, 820, 1100, 1280)
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
# Of those columns that have words and figures, and no path or id of any length.
BROKEN_WORDS = """
[...document.querySelectorAll("td[data-label]:not(.id)")].flatMap(cell =>
    [...cell.textContent.matchAll(/\\S+/g)].filter(word => {
        const range = document.createRange();
        range.setStart(cell.firstChild, word.index);
        range.setEnd(cell.firstChild, word.index + word[0].length);
        return range.getClientRects().length > 1;
    }).map(String))
"""
DISCONNECT = """
async () => {
    const controller = new AbortController();
    await fetch("/ticks/", { signal: controller.signal });
    controller.abort();
}
"""


@pytest.fixture(scope="module")
def server(ready: Bake, executable: str) -> Iterator[Server]:
    """A service on Django 6.1, which has a content security policy."""
    service = ready(django_version="6.1", deploy="none", ci="none")
    service.run("uv run manage.py migrate")
    with service.serve("uv run manage.py runserver 8000 --noreload") as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def window(chromium: Browser, server: Server) -> AsyncIterator[BrowserContext]:
    origin = f"http://127.0.0.1:{server.port}"
    async with await chromium.new_context(base_url=origin) as context:
        yield context


@pytest_asyncio.fixture(loop_scope="session")
async def page(window: BrowserContext) -> AsyncIterator[Page]:
    page = await window.new_page()
    complaints = Complaints(page)
    yield page
    await page.close()
    assert complaints == []


async def open_panel(page: Page) -> None:
    await page.goto("/__requests__/")
    await expect(page.get_by_role("status")).to_have_text("Connected")


async def test_requests_appear_as_they_end(page: Page) -> None:
    first_page = await page.request.get("/")
    assert '<a href="/__requests__/">' in await first_page.text()
    await open_panel(page)
    # It ended earlier.
    await expect(page.get_by_role("button", name="GET /", exact=True)).to_have_count(1)
    await page.request.get("/hello/you/", headers={"X-Request-ID": "a-request"})
    row = page.get_by_role("row").filter(has_text="a-request")
    await expect(row).to_contain_text("GET /hello/<str:name>/")
    await expect(row.locator(".completed")).to_have_text("completed")
    await expect(page.locator("circle.completed")).not_to_have_count(0)
    await expect(page.get_by_text("__requests__")).to_have_count(0)


async def test_keyboard_opens_the_log_of_a_request(page: Page) -> None:
    await open_panel(page)
    await page.request.get("/nowhere/", headers={"X-Request-ID": "unknown"})
    button = page.get_by_role("button", name="GET /nowhere/")
    await button.focus()
    await page.keyboard.press("Enter")
    log = page.locator("pre")
    await expect(log).to_contain_text("serving.timing: Request took")
    await expect(log).to_contain_text("request_id=unknown")
    await expect(log).to_contain_text("thread hop: django.core.handlers.exception")
    await page.keyboard.press("Space")
    await expect(log).to_have_count(0)


async def test_what_a_client_sends_stays_text(page: Page) -> None:
    await open_panel(page)
    await page.request.get("/%3Cimg%20src=x%20onerror=alert(1)%3E/<b>/")
    button = page.get_by_role("button", name="GET /<img src=x onerror=alert(1)>/<b>/")
    await button.click()
    await expect(page.locator("pre")).to_contain_text("path=")
    assert await page.locator("tbody img, tbody b").count() == 0


async def test_pause_filter_and_clear(page: Page) -> None:
    await open_panel(page)
    await page.get_by_role("button", name="Pause").click()
    await page.request.get("/hello/paused/")
    resume = page.get_by_role("button", name="Resume (1)", pressed=True)
    await expect(resume).to_be_visible()
    await expect(page.get_by_text("/hello/paused/")).to_have_count(0)
    await resume.click()
    await expect(page.get_by_text("/hello/paused/")).to_be_visible()
    await page.get_by_label("Route").fill("<str:NAME>")
    await expect(page.get_by_text("/hello/paused/")).to_be_visible()
    await expect(page.get_by_role("button", name="GET /", exact=True)).to_have_count(0)
    await page.get_by_label("Route").fill("")
    await page.get_by_role("button", name="Clear").click()
    await expect(page.locator("tbody tr, circle")).to_have_count(0)
    # They do not come back either.
    await page.reload()
    await page.request.get("/hello/cleared/")
    await expect(page.get_by_text("/hello/cleared/")).to_be_visible()
    await expect(page.locator("tbody tr")).to_have_count(1)


async def test_everybody_can_read_it(page: Page) -> None:
    for path in ("/hello/you/", "/nowhere/"):
        await page.request.get(path)
    # It looks for the session, and for the user.
    token = "x" * 32
    await page.request.post(
        "/admin/login/",
        headers={"Cookie": f"csrftoken={token}; sessionid={token}"},
        form={"username": "me", "password": "no", "csrfmiddlewaretoken": token},
    )
    await open_panel(page)
    await page.evaluate(DISCONNECT)
    await expect(page.get_by_role("cell", name="2 queries")).not_to_have_count(0)
    await expect(page.get_by_role("cell", name="disconnected")).not_to_have_count(0)
    await page.get_by_role("button", name="GET /nowhere/").first.click()
    await expect(page.locator("pre")).to_contain_text("Request took")
    for width, scheme in itertools.product(WIDTHS, SCHEMES):
        await page.set_viewport_size({"width": width, "height": 800})
        await page.emulate_media(color_scheme=scheme)
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        assert await page.evaluate(BROKEN_WORDS) == [], width
        assert await accessibility_problems(page) == [], (width, scheme)
