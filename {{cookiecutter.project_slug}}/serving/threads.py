"""Threads for synchronous work, one for each request that needs one.

Stock Django starts a thread, and opens a database connection in it, for every
request that makes a synchronous call. Here a request borrows a thread that
already has its connection, so persistent connections persist.
"""

import asyncio
import atexit
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from contextvars import Token
from functools import partial
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, Self
from weakref import WeakKeyDictionary, WeakSet

from asgiref.sync import AsyncToSync, SyncToAsync, ThreadSensitiveContext
from django.db import close_old_connections, connections, reset_queries
from django.db.backends.base.base import BaseDatabaseWrapper

logger = logging.getLogger("serving.threads")

# As many as asyncio's own default executor may have. Each can hold an open
# database connection, so a server's limit divides by this and the workers.
MAX_IDLE = 32


class Worker:
    """A thread that makes one call after another, until None."""

    # Instead of a ThreadPoolExecutor of one, whose futures, locks and semaphore take
    # as long as all else that the call of a small view needs.

    # No call of its request was made yet.
    fresh = False
    # The last call left a connection that should be closed.
    stale = False
    # And that is amid a transaction, which its request cannot end any more.
    in_atomic_block = False

    def __init__(self) -> None:
        calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self.put = calls.put
        # A daemon, or the interpreter would wait for it before it asks join_all().
        thread = Thread(target=work, args=(calls,), name="request", daemon=True)
        thread.start()
        workers[thread] = self.put

    def __del__(self) -> None:
        self.put(None)


def work(calls: SimpleQueue[Callable[[], object] | None]) -> None:
    while (call := calls.get()) is not None:
        try:
            call()
        except Exception:
            logger.exception("A call in a thread of a request failed")
        del call


workers: WeakKeyDictionary[Thread, Callable[[None], None]] = WeakKeyDictionary()


@atexit.register
def join_all() -> None:
    """Let calls that still run come to their end before the interpreter's."""
    ending = list(workers.items())
    for _, put in ending:
        put(None)
    for thread, _ in ending:
        thread.join()


class ThreadPool:
    def __init__(self, max_idle: int = MAX_IDLE) -> None:
        self.max_idle = max_idle
        self._idle: deque[Worker] = deque()
        self._lock = Lock()
        self._closed = False

    def thread(self) -> "RequestThread":
        return RequestThread(self)

    def borrow(self) -> Worker:
        try:
            # The thread last used is the likeliest to have a live connection.
            thread = self._idle.pop()
        except IndexError:
            thread = Worker()
        thread.fresh = True
        return thread

    def give_back(self, thread: Worker, busy: bool) -> None:
        if busy:
            # A cancelled request left a call running, which nobody should await.
            thread.put(partial(self._take_back, thread))
        else:
            self._take_back(thread)

    def _take_back(self, thread: Worker) -> None:
        if thread.in_atomic_block:
            # Django keeps a connection that is closed amid a transaction, closed, until
            # the block is left: of no use to another request. The server rolls back.
            thread.put(close_own_connections)
            thread.put(None)
            return
        if thread.stale:
            # In the thread's own queue, and so before any call of its next request.
            thread.put(close_old_connections)
        self._keep(thread)

    def _keep(self, thread: Worker) -> None:
        with self._lock:
            if not self._closed and len(self._idle) < self.max_idle:
                self._idle.append(thread)
                return
        thread.put(connections.close_all)
        thread.put(None)

    async def shutdown(self) -> None:
        """Close idle threads now, and borrowed ones when they are given back."""
        with self._lock:
            self._closed = True
            threads = list(self._idle)
            self._idle.clear()
        loop = asyncio.get_running_loop()
        closed = [loop.create_future() for _ in threads]
        for thread, future in zip(threads, closed, strict=True):
            thread.put(connections.close_all)
            thread.put(partial(loop.call_soon_threadsafe, settle, future, None, None))
            thread.put(None)
        await asyncio.gather(*closed)


class RequestThread(Executor):
    """Runs the thread-sensitive calls made in its ``with`` block.

    It borrows a thread at the first call and gives it back at the end of the
    block. A task that outlives the block borrows another at its next call and
    keeps it until the task ends.
    """

    def __init__(self, pool: ThreadPool) -> None:
        self._pool = pool
        self._thread: Worker | None = None
        self._token: Token[ThreadSensitiveContext] | None = None
        # The one is counted by the loop, the other by the thread.
        self._submitted = self._finished = 0
        self._ended = False
        self._survivors: WeakSet[asyncio.Task[Any]] | None = None

    def __enter__(self) -> Self:
        # ThreadSensitiveContext(executor=self) does the same, but refuses the
        # calls of tasks that outlive it, and takes the calls of a test that
        # runs inside async_to_sync() away from the thread of that test.
        context = ThreadSensitiveContext()
        SyncToAsync.context_to_thread_executor[context] = self
        self._token = SyncToAsync.thread_sensitive_context.set(context)
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._token is not None
        SyncToAsync.thread_sensitive_context.reset(self._token)
        # A token holds the context that it was made in, and so this object.
        self._token = None
        self._ended = True
        self._give_back()

    def submit(  # type: ignore[override]
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> asyncio.Future[Any]:
        """For loop.run_in_executor(), which takes a future of the loop as it is."""
        if self._ended:
            self._keep_until_done(asyncio.current_task())
        if self._thread is None:
            self._thread = self._pool.borrow()
        thread = self._thread
        future = asyncio.get_running_loop().create_future()
        self._submitted += 1
        thread.put(partial(self._run, thread, future, partial(fn, *args, **kwargs)))
        return future

    def _run(
        self, thread: Worker, future: asyncio.Future[Any], call: Callable[[], Any]
    ) -> None:
        result = error = None
        try:
            if not future.cancelled():
                if thread.fresh:
                    thread.fresh = False
                    # Django's receivers of request_started.
                    reset_queries()
                    close_old_connections()
                try:
                    result = call()
                finally:
                    thread.stale = stale()
                    thread.in_atomic_block = thread.stale and in_atomic_block()
        except BaseException as exc:  # noqa: BLE001
            error = exc
        self._finished += 1
        # Nobody waits any more if the loop is closed.
        with suppress(RuntimeError):
            future.get_loop().call_soon_threadsafe(settle, future, result, error)
        # The one leads to this frame, and the other to the one.
        del error, future

    @property
    def running(self) -> bool:
        """Whether a call still runs, or waits for the thread."""
        return self._submitted != self._finished

    @property
    def bridged(self) -> bool:
        """Whether async_to_sync() takes the calls to its own thread, past this one."""
        return bool(getattr(AsyncToSync.executors, "current", None))

    def _give_back(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._pool.give_back(thread, self.running)

    def _keep_until_done(self, task: asyncio.Task[Any] | None) -> None:
        survivors = self._survivors = self._survivors or WeakSet()
        if task is not None and task not in survivors:
            survivors.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        assert self._survivors is not None
        self._survivors.discard(task)
        if not self._survivors:
            self._give_back()


def settle(
    future: asyncio.Future[Any], result: object, error: BaseException | None
) -> None:
    if future.done():
        # Cancelled.
        return
    if isinstance(error, StopIteration):
        # As of Python 3.12 asyncio says so itself: no coroutine can raise it.
        future.set_exception(RuntimeError(f"A call raised {error!r}"))
    elif error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def stale() -> bool:
    """Whether close_old_connections() has something to do: it asks for the same."""
    now = time.monotonic()
    return any(
        connection.connection is not None
        and (
            connection.errors_occurred
            or connection.autocommit != connection.settings_dict["AUTOCOMMIT"]
            or (connection.close_at is not None and now >= connection.close_at)
        )
        for connection in connections.all(initialized_only=True)
    )


def in_atomic_block() -> bool:
    """Whether a connection of this thread's own is; it sets autocommit, so is stale."""
    return any(connection.in_atomic_block for connection in own_connections())


def close_own_connections() -> None:
    for connection in own_connections():
        connection.close()


def own_connections() -> list[BaseDatabaseWrapper]:
    """Without those that another thread, such as that of a test, shares with this."""
    return [
        connection
        for connection in connections.all(initialized_only=True)
        if not connection.allow_thread_sharing
    ]
