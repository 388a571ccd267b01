"""The pages of a service, as a browser shows them."""

import asyncio
import itertools
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from http import HTTPStatus
from typing import Literal

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, Route

from tests.template.browser import Complaints, accessibility_problems, log_in
from tests.template.prompts import DEFAULTS
from tests.template.service import Server, Site

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    # On the worker of test_admin.py, which uses the same servers.
    pytest.mark.xdist_group("admin"),
]
WIDTHS = (360, 1280)
SERVER_TIMING = """
performance.getEntriesByType("navigation")[0].serverTiming
    .map(entry => [entry.name, entry.duration])
"""
WIDER = "document.documentElement.scrollWidth > innerWidth"
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
# While DEBUG is on, Django's own pages report errors.
PAGES = {
    "/": 200,
    "/hello/you/": 200,
    "/nowhere/": 404,
    "/fail/": 500,
    "/api/nowhere/": 404,
    **({"/api/docs": 200} if "api" in DEFAULTS else {}),
    "/admin/": 200,
    "/admin/login/": 200,
}
OWN = {True: ("/", "/nowhere/", "/fail/"), False: ("/",)}


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def pages(chromium: Browser, site: Site) -> AsyncIterator[list[Page]]:
    """One for each width, logged in to the admin."""

    async def forward(route: Route) -> None:
        """Act as a proxy that terminates TLS."""
        local = f"http://127.0.0.1:{site.server.port}"
        response = await route.fetch(
            url=route.request.url.replace(site.origin, local),
            headers=await route.request.all_headers() | site.headers,
            max_redirects=0,
        )
        await route.fulfill(response=response)

    async with AsyncExitStack() as stack:
        pages: list[Page] = []
        for width in WIDTHS:
            context = await chromium.new_context(
                viewport={"width": width, "height": 700},
                storage_state=await pages[0].context.storage_state() if pages else None,
            )
            await stack.enter_async_context(context)
            if site.is_production:
                await context.route(f"{site.origin}/**", forward)
            pages.append(await context.new_page())
            if len(pages) == 1:
                await log_in(pages[0], site.origin, "/hello/me/")
        yield pages


async def test_timing_of_the_network_panel_is_that_of_the_log(
    site: Site, pages: list[Page]
) -> None:
    for path, names in {"/": ["app"], "/admin/": ["db", "app"]}.items():
        if site.is_production:
            names = ["app"] if site.server_timing else []
        # The machine may be busy between the two readings of the clock.
        for attempt in range(5):
            response = await pages[0].goto(f"{site.origin}{path}")
            assert response
            entries: dict[str, float] = dict(await pages[0].evaluate(SERVER_TIMING))
            assert list(entries) == names
            if not names:
                break
            assert 0 < entries.get("db", 0.1) < entries["app"]
            request_id = await response.header_value("x-request-id")
            seconds = await asyncio.to_thread(logged, site.server, request_id)
            difference = abs(1000 * seconds - entries["app"])
            if difference < 1:
                break
            assert attempt < 4, f"they differ by {difference} milliseconds"


def logged(server: Server, request_id: str | None) -> float:
    """The duration, in seconds, in the timing line of a request."""
    line = re.compile(rf"Request took .*request_id={request_id} .* duration=(\S+)")

    def found() -> re.Match[str] | None:
        return line.search(server.log.read_text(encoding="utf-8"))

    server.wait_for(lambda: found() is not None)
    match = found()
    assert match
    return float(match[1])


async def problems(site: Site, page: Page) -> list[str]:
    complaints, found = Complaints(page), []
    for path, status in PAGES.items():
        url = f"{site.origin}{path}"
        if path == "/admin/login/":
            await page.context.clear_cookies()
        response = await page.goto(url)
        assert response
        if response.status != status:
            complaints.append(f"it answers {response.status}")
        for scheme in SCHEMES:
            await page.emulate_media(color_scheme=scheme)
            if path in OWN[site.is_production]:
                complaints += await accessibility_problems(page)
                if await page.evaluate(WIDER):
                    complaints.append("it is wider than the window")
            # Chromium reports each such response.
            phrase = HTTPStatus(status).phrase
            said = f"the server responded with a status of {status} ({phrase})"
            found += [
                f"{path}, {scheme}, {page.viewport_size}: {complaint}"
                for complaint in complaints
                if complaint != f"Failed to load resource: {said} ({url})"
            ]
            complaints.clear()
    return found


async def test_page_is_shown_without_a_complaint(site: Site, pages: list[Page]) -> None:
    found = await asyncio.gather(*(problems(site, page) for page in pages))
    assert [*itertools.chain(*found)] == []
    log = await asyncio.to_thread(site.server.log.read_text, encoding="utf-8")
    # Browsers request it by themselves.
    assert "Not Found: /favicon.ico" not in log
