import asyncio
import contextvars
import functools
import gc
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from queue import SimpleQueue
from typing import Any
from weakref import ref

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.db import connection, connections
from django.db.backends.signals import connection_created
from onloop.handler import ASGIHandler
from onloop.outcome import SCOPE_KEY
from onloop.threads import ThreadPool, Worker

from . import views
from .conftest import Conversation, fetch, until


@pytest.fixture
async def pool() -> AsyncIterator[ThreadPool]:
    pool = ThreadPool(limit=5)
    yield pool
    await pool.shutdown()


@pytest.fixture
def opened() -> Iterator[list[str]]:
    names: list[str] = []

    def receiver(**kwargs: Any) -> None:
        names.append(threading.current_thread().name)

    connection_created.connect(receiver)
    yield names
    connection_created.disconnect(receiver)


def request_threads() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name.startswith("request")}


async def idle(pool: ThreadPool, count: int) -> None:
    await until(lambda: len(pool._idle) == count)


ident = sync_to_async(threading.get_ident)


async def test_calls_of_a_request_share_a_thread(pool: ThreadPool) -> None:
    with pool.thread():
        assert await ident() == await ident()


async def test_no_thread_is_acquired_without_a_call(pool: ThreadPool) -> None:
    with pool.thread():
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    assert not pool._idle


async def test_next_request_gets_the_thread_last_released(pool: ThreadPool) -> None:
    with pool.thread(), pool.thread():
        await ident()
    await idle(pool, 1)
    with pool.thread():
        first = await ident()
        with pool.thread():
            second = await ident()
    await idle(pool, 2)
    with pool.thread():
        assert await ident() in {first, second}
    await idle(pool, 2)
    last = pool._idle[-1]
    assert pool.acquire() is last


async def test_live_requests_never_share_a_thread(pool: ThreadPool) -> None:
    barrier = threading.Barrier(3, timeout=10)

    async def request() -> int:
        with pool.thread():
            await sync_to_async(barrier.wait)()
            return await ident()

    assert len(set(await asyncio.gather(*(request() for _ in range(3))))) == 3


async def test_thread_waits_for_the_call_of_a_cancelled_request(
    pool: ThreadPool,
) -> None:
    started, gate = threading.Event(), threading.Event()

    def call() -> None:
        started.set()
        gate.wait(10)

    async def request() -> None:
        with pool.thread():
            await sync_to_async(call)()

    task = asyncio.create_task(request())
    await until(started.is_set)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not pool._idle
    gate.set()
    await idle(pool, 1)


@pytest.mark.django_db(transaction=True)
async def test_requests_reuse_a_connection(
    handler: ASGIHandler, opened: list[str]
) -> None:
    for _ in range(10):
        await fetch(handler, "/orm/")
        await idle(handler.threads, 1)
    assert len(opened) == 1


@pytest.mark.django_db(transaction=True)
async def test_connection_past_its_age_is_closed_at_the_end(
    pool: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", 0)
    closed: list[int] = []
    with pool.thread():
        thread = await sync_to_async(use_and_record_close)(closed)
    await until(lambda: closed == [thread])


@pytest.mark.django_db(transaction=True)
async def test_queries_are_reset_before_the_first_call(
    handler: ASGIHandler, pool: ThreadPool
) -> None:
    def queries() -> int:
        connection.force_debug_cursor = True
        list(User.objects.all())
        return len(connection.queries_log)

    for _ in range(2):
        with pool.thread():
            assert await sync_to_async(queries)() == 1
        await idle(pool, 1)


@pytest.mark.django_db
async def test_queries_of_a_test_that_shares_its_connection_are_kept(
    handler: ASGIHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections["default"], "force_debug_cursor", True)
    before = len(connection.queries_log)
    for _ in range(2):
        await fetch(handler, "/orm/")
    assert len(connection.queries_log) == before + 2


@pytest.mark.django_db(transaction=True)
async def test_connection_that_persists_needs_nothing_at_the_end(
    handler: ASGIHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaned: list[Worker] = []
    monkeypatch.setattr(Worker, "clean_connections", cleaned.append)
    for _ in range(3):
        await fetch(handler, "/orm/")
        await idle(handler.threads, 1)
    assert cleaned == []


@pytest.mark.django_db(transaction=True)
async def test_open_transaction_ends_with_its_request(pool: ThreadPool) -> None:
    closed: list[int] = []

    def call() -> int:
        thread = use_and_record_close(closed)
        connection.set_autocommit(False)
        return thread

    with pool.thread():
        thread = await sync_to_async(call)()
    await until(lambda: closed == [thread])


@pytest.mark.django_db(transaction=True)
async def test_connection_with_an_error_is_checked_when_its_request_ends(
    pool: ThreadPool,
) -> None:
    asked: list[int] = []

    def is_usable() -> bool:
        asked.append(1)
        return True

    def call() -> None:
        connection.ensure_connection()
        connection.errors_occurred = True
        connection.is_usable = is_usable  # type: ignore[method-assign]

    with pool.thread():
        await sync_to_async(call)()
    await until(lambda: asked == [1])


async def test_call_that_has_not_begun_is_not_made_for_a_cancelled_request(
    pool: ThreadPool,
) -> None:
    started, gate = threading.Event(), threading.Event()
    made: list[str] = []

    def blocking() -> None:
        started.set()
        gate.wait(10)

    async def request() -> None:
        with pool.thread():
            first = asyncio.create_task(sync_to_async(blocking)())
            await until(started.is_set)
            second = asyncio.create_task(sync_to_async(made.append)("second"))
            await asyncio.sleep(0)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            gate.set()
            await first

    await request()
    await idle(pool, 1)
    assert made == []


@pytest.mark.parametrize(
    ("raised", "seen"),
    [(ValueError("no"), ValueError), (StopIteration("over"), RuntimeError)],
)
async def test_error_of_a_call_reaches_its_caller(
    pool: ThreadPool, raised: Exception, seen: type[Exception]
) -> None:
    def call() -> None:
        raise raised

    with pool.thread():
        async with asyncio.timeout(10):
            with pytest.raises(seen):
                await sync_to_async(call)()
        assert await ident()


async def test_thread_outlives_an_error_in_closing_its_connections(
    pool: ThreadPool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise ValueError("cannot close")

    with pool.thread():
        before = await ident()
    await idle(pool, 1)
    pool._idle[0].put(broken)
    async with asyncio.timeout(10):
        with pool.thread():
            assert await ident() == before
    assert "cannot close" in caplog.text


async def test_threads_of_a_pool_that_is_dropped_end() -> None:
    before = request_threads()
    pool = ThreadPool()
    with pool.thread():
        await ident()
    await idle(pool, 1)
    del pool
    await until(lambda: request_threads() <= before)


EXIT = """
import asyncio, threading
from django.conf import settings
settings.configure()
from asgiref.sync import sync_to_async
from onloop.outcome import SCOPE_KEY
from onloop.threads import ThreadPool, Worker

started = threading.Event()

def call():
    started.set()
    threading.main_thread().join()
    print("over")

async def main():
    with ThreadPool().thread():
        task = asyncio.create_task(sync_to_async(call)())
        while not started.is_set():
            await asyncio.sleep(0.001)
        task.cancel()

asyncio.run(main())
print("main is over")
"""


def test_end_of_the_process_waits_for_a_call_that_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXIT],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout.split("\n") == ["main is over", "over", ""], done.stderr


def test_end_of_the_process_does_not_wait_for_a_call_that_hangs() -> None:
    code = EXIT.replace("threading.main_thread().join()", "time.sleep(1000)")
    done = subprocess.run(
        [sys.executable, "-c", f"import time{code}"],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout.split("\n") == ["main is over", ""], done.stderr


def use_and_record_close(closed: list[int]) -> int:
    connection.ensure_connection()
    close = connection.close

    def recorded_close() -> None:
        closed.append(threading.get_ident())
        close()

    connection.close = recorded_close  # type: ignore[method-assign]
    return threading.get_ident()


@pytest.mark.django_db(transaction=True)
async def test_shutdown_closes_connections_in_their_threads(pool: ThreadPool) -> None:
    closed: list[int] = []
    with pool.thread():
        thread = await sync_to_async(use_and_record_close)(closed)
    await pool.shutdown()
    assert closed == [thread]


async def test_shutdown_that_is_cancelled_closes_every_thread(
    pool: ThreadPool, caplog: pytest.LogCaptureFixture
) -> None:
    before = request_threads()
    barrier = threading.Barrier(2, timeout=10)

    async def request() -> None:
        with pool.thread():
            await sync_to_async(barrier.wait)()

    await asyncio.gather(request(), request())
    await idle(pool, 2)
    gate = threading.Event()
    for thread in pool._idle:
        thread.put(lambda: gate.wait(10))
    shutdown = asyncio.create_task(pool.shutdown())
    await asyncio.sleep(0)
    shutdown.cancel()
    with pytest.raises(asyncio.CancelledError):
        await shutdown
    gate.set()
    await until(lambda: request_threads() <= before)
    assert caplog.text == ""


async def test_shutdown_does_not_wait_for_a_thread_that_hangs(pool: ThreadPool) -> None:
    with pool.thread():
        await ident()
    await idle(pool, 1)
    gate = threading.Event()
    pool._idle[0].put(lambda: gate.wait(1000))
    async with asyncio.timeout(10):
        await pool.shutdown()
    gate.set()


async def test_shutdown_ends_idle_threads(pool: ThreadPool) -> None:
    before = request_threads()
    with pool.thread():
        await ident()
    await idle(pool, 1)
    await pool.shutdown()
    await until(lambda: request_threads() <= before)


async def test_thread_released_after_shutdown_ends(pool: ThreadPool) -> None:
    before = request_threads()
    with pool.thread():
        await ident()
        await pool.shutdown()
    await until(lambda: request_threads() <= before)


@pytest.mark.django_db(transaction=True)
async def test_background_task_keeps_using_the_database(handler: ASGIHandler) -> None:
    await User.objects.abulk_create([User(username=name) for name in "abc"])
    await fetch(handler, "/background/")
    views.arrived.set()
    assert await views.tasks[0] == ["a", "b", "c"]


@pytest.mark.django_db(transaction=True)
async def test_background_task_releases_its_thread(handler: ASGIHandler) -> None:
    await fetch(handler, "/background/")
    views.arrived.set()
    await views.tasks[0]
    await idle(handler.threads, 1)


@pytest.mark.django_db(transaction=True)
async def test_open_transaction_of_a_background_task_ends_with_it(
    pool: ThreadPool,
) -> None:
    started, gate, ended = threading.Event(), threading.Event(), asyncio.Event()
    closed: list[int] = []

    def first() -> None:
        started.set()
        gate.wait(10)

    def second() -> int:
        thread = use_and_record_close(closed)
        connection.set_autocommit(False)
        return thread

    async def background() -> int:
        await ended.wait()
        thread = await sync_to_async(second)()
        # The request's own thread has finished, with nothing to close.
        gate.set()
        await running
        return thread

    with pool.thread():
        running = asyncio.create_task(sync_to_async(first)())
        task = asyncio.create_task(background())
        await until(started.is_set)
    ended.set()
    thread = await task
    await until(lambda: closed == [thread])


async def test_finished_request_leaves_nothing_behind(pool: ThreadPool) -> None:
    gc.disable()
    try:
        with pool.thread() as thread:
            await ident()
        gone = ref(thread)
        del thread
        # The thread may still refer to its last call.
        await until(lambda: gone() is None)
    finally:
        gc.enable()


async def test_cancelled_request_does_not_close_under_its_running_call(
    handler: ASGIHandler,
) -> None:
    conversation = Conversation("/blocking/", "POST", b"still open")
    conversation.scope["headers"].append((b"x-csrftoken", b"a" * 32))
    conversation.scope["headers"].append((b"cookie", b"csrftoken=" + b"a" * 32))
    task = conversation.start(handler)
    await views.arrived.wait()
    conversation.leave()
    await until(lambda: conversation.scope[SCOPE_KEY].client_disconnected)
    views.gate.set()
    await task
    assert views.events == ["blocking call over, body b'still open'"]


async def test_thread_starts_in_an_empty_context(pool: ThreadPool) -> None:
    views.colour.set("red")
    seen: list[str] = []
    with pool.thread():
        await ident()
    await idle(pool, 1)
    pool._idle[0].put(lambda: seen.append(views.colour.get()))
    await until(lambda: bool(seen))
    assert seen == ["none"]


def test_thread_carries_nothing_of_the_request_that_started_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start

    def start_in_context(self: Any) -> None:
        """Propagate the scope to new threads, as Sentry does."""
        self.run = functools.partial(contextvars.copy_context().run, self.run)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", start_in_context)
    context = contextvars.copy_context()
    context.run(views.colour.set, "red")
    worker = context.run(Worker, ThreadPool())
    seen: SimpleQueue[str] = SimpleQueue()
    worker.put(lambda: seen.put(views.colour.get()))
    assert seen.get(timeout=10) == "none"
