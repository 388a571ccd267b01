"""`manage.py middleware` predicts what test_hops.py counts."""

import asyncio
import json
import re
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from pytest_django import Settings

from serving.handler import Handler
from tests.test_checks import Hopping, Hybrid, Mixed, SyncOnly, both, sync_only
from tests.test_hops import Count, count, get, handler  # noqa: F401

pytestmark = pytest.mark.urls("tests.test_hops")


def run(*options: str) -> str:
    out = StringIO()
    call_command("middleware", *options, stdout=out, no_color=True)
    return out.getvalue()


async def predicted() -> int:
    # It reads files, and asyncio's own threads are not counted.
    return int(json.loads(await asyncio.to_thread(run, "--json"))["hops"])


async def test_default_chain_is_predicted_as_measured(
    handler: Handler,  # noqa: F811
    count: Count,  # noqa: F811
) -> None:
    assert await get(handler, "/async/") == 200
    assert await predicted() == count.hops == 0


@pytest.mark.parametrize(
    "middlewares",
    [[SyncOnly], [sync_only, SyncOnly], [Mixed], [Hopping], [Hybrid, both]],
    ids=lambda middlewares: " ".join(each.__name__ for each in middlewares),
)
@pytest.mark.parametrize("place", [0, 4, 6, 100])
async def test_chain_with_others_is_predicted_as_measured(
    settings: Settings,
    count: Count,  # noqa: F811
    middlewares: list[Any],
    place: int,
) -> None:
    paths = [f"tests.test_checks.{each.__name__}" for each in middlewares]
    chain = [*settings.MIDDLEWARE]
    chain[place:place] = paths
    settings.MIDDLEWARE = chain
    handler = Handler()  # noqa: F811
    assert await get(handler, "/async/") == 200
    await handler.threads.shutdown()
    assert await predicted() == count.hops


def test_table_shows_each_middleware_and_the_total(settings: Settings) -> None:
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "tests.test_checks.Mixed"]
    head, *rows, total = run().splitlines()
    assert head.split() == ["middleware", "runs", "request", "view", "response", "hops"]
    assert [row.split()[0] for row in rows] == settings.MIDDLEWARE
    assert re.fullmatch(r"serving\S+LogMiddleware +on the loop( +0){4}", rows[0])
    inlined = [row for row in rows if "CommonMiddleware" in row]
    assert re.fullmatch(r"django\S+CommonMiddleware +inlined( +0){4}", inlined[0])
    assert re.fullmatch(r"tests\S+Mixed +in a thread +1 +0 +1 +2", rows[-1])
    assert total.split() == ["total", "1", "0", "1", "2"]


def test_colours_only_on_a_terminal() -> None:
    out = StringIO()
    call_command("middleware", stdout=out)
    assert "\x1b" not in out.getvalue()
    call_command("middleware", stdout=out, force_color=True)
    assert "\x1b" in out.getvalue()


def test_hops_fail_when_they_must_not_be(settings: Settings) -> None:
    run("--fail-on-hops")
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "tests.test_checks.Mixed"]
    run()
    with pytest.raises(SystemExit) as caught:
        run("--fail-on-hops")
    assert caught.value.code == 1


def test_middleware_that_cannot_be_imported_is_shown(settings: Settings) -> None:
    settings.MIDDLEWARE = ["tests.nowhere.Middleware"]
    out = StringIO()
    with pytest.raises(SystemExit):
        call_command("middleware", stdout=out, no_color=True)
    assert "tests.nowhere.Middleware  cannot be imported" in out.getvalue()
