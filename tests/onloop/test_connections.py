"""What a request leaves in the connections of its thread, and when they are closed;
also on PostgreSQL, with DATABASE_URL.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, connections, transaction
from django.db.backends.signals import connection_created
from onloop import server_timing
from onloop.threads import ThreadPool, acquire_thread

from .conftest import until


@pytest.fixture(autouse=True)
def database(django_db_blocker: Any) -> Iterator[None]:
    # Most tests need no table, and flushing the database takes longer than all tests.
    with django_db_blocker.unblock():
        yield


@pytest.fixture
async def pool() -> AsyncIterator[ThreadPool]:
    pool = ThreadPool(limit=2)
    yield pool
    await pool.shutdown()


async def idle(pool: ThreadPool, count: int = 1) -> None:
    await until(lambda: len(pool._idle) == count)


async def request(pool: ThreadPool, *calls: Callable[[], Any]) -> Any:
    """The result of the last call, when the thread is idle again."""
    with pool.thread():
        for call in calls:
            result = await sync_to_async(call)()
    await idle(pool)
    return result


def query(sql: str = "SELECT 1") -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0] if cursor.description else None


def driver_connection() -> Any:
    connection.ensure_connection()
    return connection.connection


def on_postgresql() -> bool:
    return connection.vendor == "postgresql"


# Execute wrappers.


def refuse(*args: Any) -> Any:
    raise AssertionError("a wrapper of another request")


entered = ExitStack()


def enter_wrapper() -> None:
    entered.enter_context(connection.execute_wrapper(refuse))


@pytest.mark.parametrize(
    "calls",
    [
        [enter_wrapper],
        [enter_wrapper, driver_connection],
        [query, enter_wrapper],
        [lambda: connection.execute_wrappers.append(refuse), driver_connection],
    ],
)
async def test_execute_wrapper_that_was_never_left_is_removed(
    pool: ThreadPool, calls: list[Callable[[], Any]]
) -> None:
    await request(pool, *calls)
    assert await request(pool, query) == 1
    # Its connection no longer belongs to a thread.
    entered.pop_all()


def watch(*args: Any) -> Any:
    execute, *arguments = args
    return execute(*arguments)


def install(connection: Any, **kwargs: Any) -> None:
    if watch not in connection.execute_wrappers:
        connection.execute_wrappers.append(watch)


@pytest.mark.parametrize("late", [False, True])
async def test_permanently_installed_execute_wrapper_stays(late: bool) -> None:
    if late:
        pool = ThreadPool(limit=1)
    connection_created.connect(server_timing.watch_connection)
    connection_created.connect(install)
    if not late:
        pool = ThreadPool(limit=1)
    try:
        made = await request(pool, driver_connection)
        for _ in range(3):
            assert await request(pool, query, driver_connection) is made
        wrappers = await request(pool, lambda: list(connection.execute_wrappers))
        assert wrappers == [server_timing.watch_query, watch]
        # It recognises one that the request inserted between them.
        await request(pool, enter_wrapper)
        assert await request(pool, query) == 1
    finally:
        connection_created.disconnect(server_timing.watch_connection)
        connection_created.disconnect(install)
        await pool.shutdown()
        entered.pop_all()


# Transactions, errors, the state of a session.


@pytest.mark.django_db(transaction=True)
async def test_transaction_without_autocommit_ends_with_its_request(
    pool: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections.settings["default"], "AUTOCOMMIT", False)

    def write() -> Any:
        query("INSERT INTO auth_group (name) VALUES ('half made')")
        return driver_connection()

    made = await request(pool, write)
    count = "SELECT count(*) FROM auth_group WHERE name = 'half made'"
    assert await request(pool, lambda: query(count)) == 0
    # As under Django's handler, it is kept and only rolled back.
    assert await request(pool, driver_connection) is made


async def test_connection_with_an_error_that_still_works_is_kept(
    pool: ThreadPool,
) -> None:
    def fail() -> Any:
        with pytest.raises(Exception, match="no_such_table"):
            query("SELECT * FROM no_such_table")
        assert connection.errors_occurred
        return connection.connection

    made = await request(pool, fail)
    assert await request(pool, driver_connection) is made


def change_session() -> None:
    if on_postgresql():
        query("SET TIME ZONE 'Asia/Tokyo'")
        query("SET search_path TO pg_catalog")
        query("SELECT pg_advisory_lock(7)")
    query("CREATE TEMPORARY TABLE of_a_session (number int)")


def session() -> list[Any]:
    if not on_postgresql():
        return [query("SELECT count(*) FROM sqlite_temp_master")]
    return [
        query("SHOW TIME ZONE"),
        query("SHOW search_path"),
        query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"),
        query("SELECT count(*) FROM pg_class WHERE relname = 'of_a_session'"),
    ]


async def test_session_is_reset_between_requests_on_request(settings: Any) -> None:
    settings.REQUEST_CONNECTION_RESET = True
    pool = ThreadPool()
    before = await request(pool, session)
    made = await request(pool, change_session, driver_connection)
    assert await request(pool, session) == before
    # As Django set it when it opened the connection.
    assert before[0] == ("UTC" if on_postgresql() else 0)
    kept = await request(pool, driver_connection) is made
    assert kept == on_postgresql()
    await pool.shutdown()


async def test_session_persists_with_its_connection_by_default(
    pool: ThreadPool,
) -> None:
    before = await request(pool, session)
    await request(pool, change_session)
    assert await request(pool, session) != before


async def test_connection_that_cannot_be_cleaned_is_discarded(
    pool: ThreadPool, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        connection.close_if_unusable_or_obsolete = refuse  # type: ignore[method-assign]
        connection.errors_occurred = True

    made = await request(pool, driver_connection)
    await request(pool, broken)
    assert "could not be cleaned" in caplog.text
    assert await request(pool, query) == 1
    assert await request(pool, driver_connection) is not made


# Idle threads.


async def test_idle_thread_closes_a_connection_in_time(
    pool: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", 0.2)

    def wrapper() -> Any:
        connection.ensure_connection()
        return connections["default"]

    used = await request(pool, wrapper)
    # Only time passes.
    await until(lambda: used.connection is None)
    assert time.monotonic() >= used.close_at
    await idle(pool)


async def test_connection_is_not_closed_in_time_while_a_request_has_its_thread(
    pool: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", 0.01)
    with pool.thread():
        made = await sync_to_async(driver_connection)()
        await asyncio.sleep(0.05)
        assert await sync_to_async(driver_connection)() is made


async def test_thread_is_idle_when_its_connection_is_closed(
    pool: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", 0)
    gate = threading.Event()

    def use() -> threading.Thread:
        connection.ensure_connection()
        close = connection.close

        def slow() -> None:
            gate.wait(10)
            close()

        connection.close = slow  # type: ignore[method-assign]
        return threading.current_thread()

    with pool.thread():
        closer = await sync_to_async(use)()
    assert not pool._idle
    with pool.thread():
        assert await sync_to_async(threading.current_thread)() is not closer
    gate.set()
    await idle(pool, 2)


# acquire_thread().


current = sync_to_async(threading.current_thread)


async def test_acquired_thread_is_released_at_the_end_of_the_block(
    pool: ThreadPool,
) -> None:
    with pool.thread():
        # As by a middleware.
        before = await current()
        with acquire_thread():
            assert await current() is before
            with acquire_thread():
                assert await current() is before
            assert not pool._idle
        assert len(pool._idle) == 1
        # The next call acquires another.
        assert await current() is before
        assert not pool._idle


async def test_thread_with_an_open_transaction_or_a_running_call_is_not_released(
    pool: ThreadPool,
) -> None:
    atomic = transaction.atomic()
    started, gate = threading.Event(), threading.Event()

    def block() -> None:
        started.set()
        gate.wait(10)

    with pool.thread() as thread:
        with acquire_thread():
            await sync_to_async(atomic.__enter__)()
        assert not pool._idle
        await sync_to_async(atomic.__exit__)(None, None, None)
        with acquire_thread():
            running = asyncio.create_task(sync_to_async(block)())
            await until(started.is_set)
        gate.set()
        await running
        assert thread._worker is not None
        with acquire_thread():
            pass
        await idle(pool)


async def test_task_that_outlives_its_request_acquires_one(pool: ThreadPool) -> None:
    ended = asyncio.Event()

    async def background() -> None:
        await ended.wait()
        for _ in range(2):
            with acquire_thread():
                await current()
            assert len(pool._idle) == 1

    with pool.thread():
        task = asyncio.create_task(background())
    ended.set()
    await task


async def test_acquire_thread_does_nothing_where_onloop_does_not_serve() -> None:
    with acquire_thread():
        assert await current() is await current()


def test_acquire_thread_does_nothing_in_synchronous_code() -> None:
    with acquire_thread():
        pass


async def test_streams_that_hold_more_than_half_of_the_threads_are_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = ThreadPool(limit=4)

    async def stream(holds: bool = True) -> None:
        thread = stack.enter_context(pool.thread())
        thread.start_stream()
        with acquire_thread():
            await current()
        assert pool._idle
        if holds:
            await current()

    # They are nested, which does no harm.
    with ExitStack() as stack:
        await stream()
        await stream()
        await stream(holds=False)
        assert caplog.text == ""
        await stream()
        await stream()
    [record] = caplog.records
    assert "3 of 4 threads (REQUEST_THREADS)" in record.getMessage()
    assert "onloop.threads.acquire_thread()" in record.getMessage()
    assert not pool.streams
    await pool.shutdown()
