"""One transaction for all threads of a database test.

pytest-django begins it in its own thread. The queries of an asynchronous test run in
other threads, and with connections of their own these would commit.
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

# Seconds to wait for another thread, which may itself wait for ever.
PATIENCE = 5
opened: set[BaseDatabaseWrapper] = set()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    result = yield
    # What is added here runs before pytest-django's own teardown of the fixture.
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
    """Let all threads use this thread's connections; return what ends that."""
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
        finish_calls(turns.give_up)
        with turns:
            patch.undo()
            for connection, (savepoints, blocks) in zip(shared, depths, strict=True):
                connection.dec_thread_sharing()
                with suppress(ValueError):
                    connection.execute_wrappers.remove(turns.execute)
                if len(connection.atomic_blocks) > blocks:
                    # A cancelled task left blocks open, and pytest-django would end
                    # the innermost of them instead of its own.
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
        self.patient = True

    def __enter__(self) -> None:
        # A block that waits for another thread, or never ends, holds up the test once:
        # from then on nobody takes turns.
        if self.patient and not self.lock.acquire(timeout=PATIENCE):
            self.patient = False

    def __exit__(self, *exc_info: object) -> None:
        # Nobody holds it, or another thread.
        with suppress(RuntimeError):
            self.lock.release()

    def give_up(self) -> None:
        """Leave the blocks that nobody will leave any more."""
        with suppress(RuntimeError):
            while True:
                self.lock.release()

    def call_in_own_thread(self, call: Callable[[], None]) -> None:
        if get_ident() == self.thread:
            call()

    def execute(self, execute: Callable[..., Any], *args: Any) -> Any:
        """For connection.execute_wrappers."""
        context = args[-1]
        with self:
            if context["connection"].vendor != "sqlite" or get_ident() == self.thread:
                return execute(*args)
            # sqlite3 would keep the statement in progress during the turns of others.
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
    """Those of other threads: they keep the database from being flushed or dropped."""
    finish_calls(int)
    for connection in opened - set(connections.all(initialized_only=True)):
        connection.inc_thread_sharing()
        # Its thread could not use it again if it were closed in a transaction.
        connection.in_atomic_block = False
        # SQLite's own method leaves a database in memory open.
        BaseDatabaseWrapper.close(connection)
        connection.dec_thread_sharing()
    opened.clear()


def finish_calls(then: Callable[[], object]) -> None:
    """Wait for the calls in asgiref's thread that the test does not await."""
    executor = SyncToAsync.single_thread_executor
    # Without calls it has not started the thread.
    if getattr(executor, "_threads", True):
        wait([executor.submit(then)], timeout=PATIENCE)
