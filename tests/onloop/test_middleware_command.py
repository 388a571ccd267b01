"""`manage.py middleware` shows what onloop.measure finds."""

import json
import re
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from onloop import _compat
from pytest_django import Settings

MIDDLEWARES = "tests.onloop.middlewares"


def run(*arguments: str, **options: Any) -> str:
    out = StringIO()
    call_command("middleware", *arguments, stdout=out, **options)
    return out.getvalue()


def add(settings: Settings, *names: str) -> None:
    paths = (f"{MIDDLEWARES}.{name}" for name in names)
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, *paths]


def test_table_shows_each_middleware_and_each_hop(settings: Settings) -> None:
    add(settings, "Marked", "Hopping")
    response, head, *rows, total = run("/sync/").splitlines()
    assert response == "GET /sync/ -> 200"
    assert re.split("  +", head) == ["middleware", "execution", "thread hops"]
    assert rows.pop().strip().startswith("tests.onloop.views.synchronous at django/")
    assert re.fullmatch(r"\(view and others\) +1", rows.pop())
    own = f"{MIDDLEWARES}.work at tests/onloop/middlewares.py"
    assert re.fullmatch(rf"    {own}:\d+ in hop", rows.pop())
    assert re.fullmatch(rf"    {own}:\d+ in __call__", rows.pop())
    assert [row.split()[0] for row in rows] == settings.MIDDLEWARE
    assert re.fullmatch(r"django\S+SecurityMiddleware +inlined +0", rows[0])
    assert re.fullmatch(r"\S+Marked +on the loop +0", rows[-2])
    assert re.fullmatch(r"\S+Hopping +on the loop +2", rows[-1])
    assert total.split() == ["total", "3"]


def test_djangos_own_handler_is_not_measured(settings: Settings) -> None:
    settings.ASGI_APPLICATION = "tests.onloop.test_runserver.STOCK"
    with pytest.raises(CommandError, match=r"STOCK is Django's own handler\."):
        run()


def test_columns_are_aligned(settings: Settings) -> None:
    add(settings, "Mixed")
    rows = [row for row in run().splitlines()[1:] if not row.startswith("    ")]
    assert len({len(row) for row in rows}) == 1


def test_json_has_all_of_it(settings: Settings) -> None:
    add(settings, "Hopping")
    data = json.loads(run("/sync/?a=b", "--json"))
    assert (data["path"], data["status"], data["total"]) == ("/sync/?a=b", 200, 3)
    assert [each["path"] for each in data["middleware"]] == settings.MIDDLEWARE
    assert data["middleware"][0] == {
        "path": "django.middleware.security.SecurityMiddleware",
        "execution": "inlined",
        "thread_hops": [],
    }
    for hop in (*data["middleware"][-1]["thread_hops"], *data["other"]):
        assert hop.keys() == {"what", "where"}
    assert data["other"][0]["what"] == "tests.onloop.views.synchronous"


def test_rows_with_hops_have_another_colour(settings: Settings) -> None:
    assert "\x1b" not in run(no_color=True)
    add(settings, "Marked", "Mixed")
    lines = run(force_color=True).splitlines()
    rows = [line for line in lines if not line.startswith("    ")]
    good, bad = (row for row in rows if f"{MIDDLEWARES}.M" in row)
    assert good.startswith("\x1b")
    assert good.partition("m")[0] != bad.partition("m")[0]


@pytest.mark.parametrize("name", ["Hopping", "Mixed", "SyncOnly"])
def test_command_fails_only_on_hops_that_are_not_allowed(
    settings: Settings, name: str
) -> None:
    run("--fail-on-hops")
    add(settings, name)
    run()
    with pytest.raises(SystemExit) as caught:
        run("--fail-on-hops")
    assert caught.value.code == 1
    settings.SYNC_MIDDLEWARE = [f"{MIDDLEWARES}.{name}"]
    run("--fail-on-hops")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_hops_of_the_view_fail_too(options: list[str]) -> None:
    with pytest.raises(SystemExit):
        run("/sync/", "--fail-on-hops", *options)


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("Nowhere", "cannot be imported: "),
        ("coroutine_factory", "is a coroutine function"),
    ],
)
def test_middleware_that_cannot_work_is_named(
    settings: Settings, name: str, mistake: str
) -> None:
    add(settings, name)
    with pytest.raises(CommandError, match=rf"'{MIDDLEWARES}\.{name}' {mistake}"):
        run()


@pytest.mark.parametrize("path", ["sync/", "http://localhost/", ""])
def test_path_begins_with_a_slash(path: str) -> None:
    with pytest.raises(CommandError, match=f"'{path}' does not begin with a slash"):
        run(path)


def test_unsupported_django_is_not_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_compat, "PROBLEM", "a name is missing")
    with pytest.raises(CommandError, match="a name is missing"):
        run()
