"""This machine's Chromium, headless, and what it reports about a page."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from playwright.async_api import Browser, Page, async_playwright

NAMES = ("google-chrome", "google-chrome-stable", "chromium", "chromium-browser")
MISSING = "no Chrome or Chromium is on the PATH (apt-get install chromium)"
AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text()


def find() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


@asynccontextmanager
async def launched(executable: str, *arguments: str) -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=executable,
            # Chromium refuses to run as root within its sandbox.
            chromium_sandbox=os.geteuid() != 0,
            args=["--disable-background-networking", *arguments],
        )
        try:
            yield browser
        finally:
            await browser.close()


class Complaints(list[str]):
    """The errors in a page's console, including violations of its policy."""

    def __init__(self, page: Page) -> None:
        page.on("pageerror", lambda error: self.append(str(error)))
        page.on(
            "console",
            lambda message: (
                self.append(f"{message.text} ({message.location['url']})")
                if message.type in ("error", "warning")
                else None
            ),
        )


async def log_in(page: Page, origin: str, path: str) -> None:
    """Log in as the user of conftest.with_admin, and go to the path."""
    await page.goto(f"{origin}/admin/login/?next={path}")
    await page.fill("[name=username]", "me")
    await page.fill("[name=password]", "correct horse")
    await page.click("[type=submit]")
    await page.wait_for_url(f"**{path}")


async def accessibility_problems(page: Page) -> list[str]:
    """The problems that axe-core finds on the page in its current state."""
    await page.evaluate(AXE)
    found: dict[str, Any] = await page.evaluate("axe.run()")
    return [
        f"{violation['id']}: {node['html']}"
        for violation in found["violations"]
        for node in violation["nodes"]
    ]
