import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from threading import Event
from typing import Any

import pytest
from django.db import OperationalError, connections
from django.db.migrations.exceptions import NodeNotFoundError
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest
from onloop import health
from onloop.health import HealthCheck, database, migrations

Ask = Callable[[HealthCheck], Any]


@pytest.fixture
async def ask() -> AsyncIterator[Ask]:
    asked: list[HealthCheck] = []

    async def ask(view: HealthCheck) -> tuple[int, Any]:
        asked.append(view)
        response = await view(HttpRequest())
        assert response.headers["Cache-Control"] == "no-store"
        return response.status_code, json.loads(response.content)

    yield ask
    for view in asked:
        await forget(view)


async def forget(view: HealthCheck) -> None:
    """Expire the result, as if a second had passed."""
    if view.kept_until:
        await asyncio.to_thread(view.thread.join)
        view.kept_until = 0


OK = (200, {"status": "ok"})


def failed(**reasons: str) -> tuple[int, Any]:
    return 503, {"status": "failed", "failed": reasons}


async def test_without_checks_it_starts_no_thread(ask: Ask) -> None:
    view = HealthCheck()
    assert await ask(view) == OK
    assert view.thread.ident is None


async def test_requests_that_arrive_meanwhile_share_one_check_for_a_second(
    ask: Ask,
) -> None:
    checks = []
    released = Event()

    def check() -> None:
        checks.append(1)
        assert released.wait(5)

    async def release() -> None:
        released.set()

    view = HealthCheck(check)
    *answers, _ = await asyncio.gather(*[ask(view) for _ in range(100)], release())
    assert answers == [OK] * 100
    assert await ask(view) == OK
    assert len(checks) == 1
    await forget(view)
    assert await ask(view) == OK
    assert len(checks) == 2


async def test_some_checks_are_made_until_they_have_passed(ask: Ask) -> None:
    made = []
    reasons: dict[str, list[str | None]] = {
        "first": ["too early"],
        "second": ["too late"],
        "always": [],
    }

    def check(name: str) -> Callable[[], str | None]:
        def check() -> str | None:
            made.append(name)
            return reasons[name].pop(0) if reasons[name] else None

        check.__name__ = name
        return check

    first_two: Sequence[Any] = [check("first"), check("second")]
    view = HealthCheck(check("always"), until_passed=first_two)
    expected = [failed(first="too early"), failed(second="too late"), OK, OK]
    for answer in expected:
        assert await ask(view) == answer
        await forget(view)
    assert made == ["always", "first"] + 2 * ["always", "first", "second"] + ["always"]


async def test_check_that_hangs_has_failed_and_no_other_is_begun(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "CHECK_TIMEOUT", 0.01)
    monkeypatch.setattr(health, "RESULT_LIFETIME", 0)
    released = Event()
    begun = []

    def hanging() -> None:
        begun.append(1)
        released.wait(5)

    view = HealthCheck(hanging)
    answers = [await ask(view) for _ in range(3)]
    released.set()
    assert answers == [failed(hanging="no answer within 0.01 seconds")] * 3
    assert len(begun) == 1


async def test_check_that_is_no_function_is_named_by_its_type(ask: Ask) -> None:
    assert await ask(HealthCheck(partial(str, "down"))) == failed(partial="down")


@pytest.mark.parametrize(
    ("error", "reason", "levels"),
    [
        (OperationalError("10.0.0.1 refused"), "it cannot be reached", ["WARNING"]),
        (ValueError("10.0.0.1"), "it cannot be checked", ["ERROR", "WARNING"]),
    ],
)
async def test_cause_is_logged_and_not_shown(
    ask: Ask,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    reason: str,
    levels: list[str],
) -> None:
    def check() -> None:
        raise error

    with caplog.at_level(logging.WARNING, "onloop.health"):
        assert await ask(HealthCheck(check)) == failed(check=reason)
    assert [record.levelname for record in caplog.records] == levels
    assert "10.0.0.1" in caplog.text


@pytest.mark.django_db(transaction=True)
async def test_connection_of_the_check_is_closed(ask: Ask) -> None:
    used = []

    def check() -> None:
        connections["default"].ensure_connection()
        used.append(connections["default"])

    view = HealthCheck(check)
    assert await ask(view) == OK
    await forget(view)
    assert [connection.connection for connection in used] == [None]


@pytest.mark.django_db(transaction=True)
async def test_database_that_does_not_answer_is_named(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = HealthCheck(database)
    assert await ask(view) == OK
    await forget(view)
    # Patches the class, because the thread of the check has its own connection.
    wrapper = type(connections["default"])

    def refuse(*args: Any) -> Any:
        raise OperationalError("refused")

    monkeypatch.setattr(wrapper, "get_new_connection", refuse)
    assert await ask(view) == failed(database="it cannot be reached")


@pytest.mark.django_db(transaction=True)
async def test_unapplied_migrations_are_named(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = [[("home.0001_initial", False), ("home.0002_more", False)], []]
    monkeypatch.setattr(MigrationExecutor, "migration_plan", lambda *_: plan.pop(0))
    view = HealthCheck(database, until_passed=[migrations])
    reason = "2 unapplied, the first is home.0001_initial"
    for answer in (failed(migrations=reason), OK, OK):
        assert await ask(view) == answer
        await forget(view)
    assert plan == []


@pytest.mark.django_db(transaction=True)
async def test_migrations_that_cannot_be_read_are_not_ready(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_parent(*args: object) -> None:
        raise NodeNotFoundError("no parent", ("home", "0002"))

    monkeypatch.setattr(MigrationExecutor, "__init__", no_parent)
    view = HealthCheck(migrations)
    assert await ask(view) == failed(migrations="it cannot be checked")
