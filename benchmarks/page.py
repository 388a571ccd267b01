"""Load a page in a browser, as a person would, and measure when it is shown."""

import statistics
from typing import Any

from playwright.async_api import Error

from benchmarks.contender import HOST, Refused
from tests.template import browser

FIGURES = """
() => new Promise(resolve => new PerformanceObserver(list => resolve({
    ttfb_ms: performance.getEntriesByType("navigation")[0].responseStart,
    lcp_ms: list.getEntries().at(-1).startTime,
})).observe({type: "largest-contentful-paint", buffered: true}))
"""


async def loaded(port: int, path: str, times: int) -> dict[str, float]:
    """The medians, in milliseconds, with an empty browser cache each time."""
    found = browser.find()
    if not found:
        raise Refused(browser.MISSING)
    runs: list[dict[str, Any]] = []
    try:
        async with browser.launched(found) as chromium:
            for _ in range(times):
                page = await chromium.new_page()
                await page.goto(f"http://{HOST}:{port}{path}", timeout=120_000)
                runs.append(await page.evaluate(FIGURES))
                await page.close()
    except Error as error:
        raise Refused(error.message.splitlines()[0]) from error
    return {
        name: round(statistics.median(run[name] for run in runs), 1) for name in runs[0]
    }
