"""Share the transaction of a database test with all threads.

pytest-django begins it in its own thread. An asynchronous test makes its queries in
other threads, which would commit them on connections of their own.
"""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import wait
from contextlib import suppress
from functools import partial
from itertools import islice
from threading import RLock, get_ident
from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.sync import SyncToAsync
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.db.transaction import Atomic
from django.test import SimpleTestCase

# Seconds to wait for another thread, which may itself wait forever.
TURN_TIMEOUT = 5
opened: set[BaseDatabaseWrapper] = set()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    result = yield
    # Finalizers that are added here run before pytest-django's own.
    if fixturedef.argname == "django_db_setup":
        connection_created.connect(record_connection)
        disconnect = partial(connection_created.disconnect, record_connection)
        fixturedef.addfinalizer(disconnect)
        fixturedef.addfinalizer(close_other_connections)
    elif fixturedef.argname == "_django_db_helper":
        if issubclass(request.cls or object, SimpleTestCase):
            # Its asynchronous methods make their queries in the test's thread.
            pass
        elif any(each.in_atomic_block for each in connections.all(True)):
            fixturedef.addfinalizer(share_connections())
        else:
            fixturedef.addfinalizer(close_other_connections)
    return result


def share_connections() -> Callable[[], None]:
    """Let all threads use this thread's connections; return a function that ends it."""
    shared = connections.all()
    depths = [(len(c.savepoint_ids), len(c.atomic_blocks)) for c in shared]
    turns = Turns()
    patch = pytest.MonkeyPatch()
    for connection in shared:
        connection.inc_thread_sharing()
        connection.execute_wrappers.insert(0, turns.execute)
        # A thread that closes its connection must not end the test's transaction.
        close = partial(turns.call_in_own_thread, connection.close)
        patch.setitem(vars(connection), "close", close)
    turns.patch_atomic(patch)
    storage = SimpleNamespace(**{each.alias: each for each in shared})
    patch.setattr(connections, "_connections", storage)

    def end_sharing() -> None:
        finish_calls(turns.release)
        with turns:
            patch.undo()
            for connection, (savepoints, blocks) in zip(shared, depths, strict=True):
                connection.dec_thread_sharing()
                with suppress(ValueError):
                    connection.execute_wrappers.remove(turns.execute)
                if len(connection.atomic_blocks) > blocks:
                    # A cancelled task did not leave its blocks, and pytest-django would
                    # end the innermost of them instead of its own.
                    del connection.savepoint_ids[savepoints:]
                    del connection.atomic_blocks[blocks:]

    return end_sharing


class Turns:
    """Threads take turns with the connections, one query or atomic() block at a time.

    Otherwise one would release the savepoint of another, or roll back its queries.
    """

    def __init__(self) -> None:
        self.thread = get_ident()
        self.lock = RLock()
        self.timed_out = False

    def __enter__(self) -> None:
        # A block that waits for another thread, or never ends, delays the test only
        # once: from then on, threads no longer take turns.
        if not self.timed_out and not self.lock.acquire(timeout=TURN_TIMEOUT):
            self.timed_out = True

    def __exit__(self, *exc_info: object) -> None:
        # After a timeout this thread does not hold it.
        with suppress(RuntimeError):
            self.lock.release()

    def release(self) -> None:
        """Release the lock for blocks that were never left."""
        with suppress(RuntimeError):
            while True:
                self.lock.release()

    def call_in_own_thread(self, call: Callable[[], None]) -> None:
        if get_ident() == self.thread:
            call()

    def execute(self, execute: Callable[..., Any], *args: Any) -> Any:
        """An execute wrapper."""
        context = args[-1]
        with self:
            if context["connection"].vendor != "sqlite" or get_ident() == self.thread:
                return execute(*args)
            # Unless all rows are fetched, the statement stays active in sqlite3 while
            # other threads take their turns.
            cursor = context["cursor"]
            cursor.cursor = sqlite = getattr(cursor.cursor, "sqlite", cursor.cursor)
            execute(*args)
            with context["connection"].wrap_database_errors:
                cursor.cursor = FetchedCursor(sqlite)
            return cursor.cursor

    def patch_atomic(self, patch: pytest.MonkeyPatch) -> None:
        enter, exit_ = Atomic.__enter__, Atomic.__exit__

        def __enter__(atomic: Atomic) -> None:
            with self:
                enter(atomic)
                self.__enter__()

        def __exit__(atomic: Atomic, *exc_info: Any) -> None:
            try:
                exit_(atomic, *exc_info)
            finally:
                self.__exit__()

        patch.setattr(Atomic, "__enter__", __enter__)
        patch.setattr(Atomic, "__exit__", __exit__)


class FetchedCursor:
    def __init__(self, sqlite: Any) -> None:
        self.sqlite = sqlite
        rows = iter(sqlite.fetchall())
        self.fetchone = partial(next, rows, None)
        self.fetchmany = lambda size=1: list(islice(rows, size))
        self.fetchall = lambda: list(rows)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.fetchone, None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sqlite, name)


def record_connection(connection: BaseDatabaseWrapper, **kwargs: object) -> None:
    opened.add(connection)


def close_other_connections() -> None:
    """Close those of other threads, which would block flushing or dropping tables."""
    finish_calls(int)
    for connection in opened - set(connections.all(initialized_only=True)):
        connection.inc_thread_sharing()
        # Closed within a transaction, it could not be used again by its thread.
        connection.in_atomic_block = False
        # SQLite's own close() leaves an in-memory database open.
        BaseDatabaseWrapper.close(connection)
        connection.dec_thread_sharing()
    opened.clear()


def finish_calls(then: Callable[[], object]) -> None:
    """Wait for calls in asgiref's thread that the test did not await."""
    executor = SyncToAsync.single_thread_executor
    # The executor has not started its thread if there was no call.
    if getattr(executor, "_threads", True):
        wait([executor.submit(then)], timeout=TURN_TIMEOUT)
