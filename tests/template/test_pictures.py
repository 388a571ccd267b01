"""The pictures of the READMEs: `make screenshots` keeps them."""

import asyncio
import base64
import os
from pathlib import Path
from types import FunctionType
from typing import Literal
from urllib.parse import quote

import pytest
from playwright.async_api import Browser, Error, Page, expect

from tests.template.browser import log_in
from tests.template.prompts import choices
from tests.template.service import TEMPLATE, TREE, Site

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    # On the worker of test_admin.py, whose server is in the pictures.
    pytest.mark.xdist_group("admin"),
    pytest.mark.parametrize("with_admin", choices("django_version")[:1], indirect=True),
    pytest.mark.parametrize("site", ["development"], indirect=True),
]
ONLOOP = TREE / "vendor" / "onloop"
KEPT = bool(os.environ.get("SCREENSHOTS"))
TIMING = (Path(__file__).parent / "timing.html").read_text(encoding="utf-8")
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
# The first request of a process reads the template from disk.
WARM_UP = 3


async def first_page(page: Page, site: Site) -> None:
    """So small that it fits beside what the service answers."""
    await page.set_viewport_size({"width": 384, "height": 360})
    await page.goto(site.origin)
    await page.evaluate("document.documentElement.style.zoom = 0.6")


async def timing(page: Page, site: Site) -> None:
    """The Network panel for a page that queried the database."""
    await log_in(page, site.origin, "/admin/")
    for _ in range(WARM_UP):
        await page.goto(f"{site.origin}/admin/")
    entry = await page.evaluate(
        "performance.getEntriesByType('navigation')[0].toJSON()"
    )
    await page.set_content(TIMING)
    await page.evaluate("entry => show(entry)", entry)
    height = await page.evaluate("document.body.scrollHeight")
    await page.set_viewport_size({"width": 640, "height": height + 24})


async def panel(page: Page, site: Site) -> None:
    """Under load."""
    await page.set_viewport_size({"width": 960, "height": 640})
    await page.goto(f"{site.origin}/__requests__/")
    await expect(page.get_by_role("status")).to_have_text("Connected")
    await page.get_by_role("button", name="Clear").click()
    ticks = page.request.get(f"{site.origin}/ticks/", timeout=500)
    stream = asyncio.create_task(ticks)
    for _ in range(20):
        paths = ("/", "/hello/you/", "/nowhere/", "/admin/login/", "/fail/")
        await asyncio.gather(*(page.request.get(site.origin + path) for path in paths))
    with pytest.raises(Error):
        await stream
    await expect(page.locator("tbody .disconnected")).to_have_count(1)
    await expect(page.locator("tbody tr").nth(100)).to_be_attached()


# Where each is kept, and whose READMEs show it.
PICTURES = {
    first_page: (TEMPLATE / "docs" / "pictures", [TEMPLATE]),
    timing: (TEMPLATE / "docs" / "pictures", [TEMPLATE]),
    panel: (ONLOOP, [TEMPLATE, ONLOOP]),
}


@pytest.mark.parametrize("picture", PICTURES)
async def test_picture_of_the_readme_is_small(
    picture: FunctionType, chromium: Browser, site: Site, tmp_path: Path
) -> None:
    folder, shown = PICTURES[picture]
    page = await chromium.new_page()
    await picture(page, site)
    # playwright's own screenshot() cannot write WebP, which is smaller.
    session = await page.context.new_cdp_session(page)
    for scheme in SCHEMES:
        await page.emulate_media(color_scheme=scheme)
        format = {"format": "webp", "quality": 80}
        taken = await session.send("Page.captureScreenshot", format)
        image = base64.b64decode(taken["data"])
        assert 1_000 < len(image) < 60_000
        name = f"{picture.__name__}-{scheme}.webp"
        for place in shown:
            readme = await asyncio.to_thread((place / "README.md").read_text, "utf-8")
            address = quote((folder / name).relative_to(place).as_posix())
            assert f'="{address}"' in readme
        path = (folder if KEPT else tmp_path) / name
        await asyncio.to_thread(path.write_bytes, image)
    await page.context.close()
