"""Threads for synchronous work, one for each request that needs one.

Stock Django starts a thread, and opens a database connection in it, for every request
that makes a synchronous call. Here a request acquires a thread that already has its
connection, so persistent connections persist.
"""

import asyncio
import atexit
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import suppress
from contextvars import Context, Token
from functools import partial
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, Self
from weakref import WeakKeyDictionary, WeakSet

from asgiref.sync import AsyncToSync, SyncToAsync, ThreadSensitiveContext
from django.db import close_old_connections, connections, reset_queries
from django.db.backends.base.base import BaseDatabaseWrapper

logger = logging.getLogger("onloop.threads")

# As many as asyncio's own default executor may have. Each can hold an open database
# connection, so a server's limit divides by this and the workers.
MAX_IDLE = 32


class Worker:
    """A thread that makes one call after another, until None."""

    # Instead of a ThreadPoolExecutor of one, whose futures, locks and semaphore take
    # as long as all else that the call of a small view needs.

    # No call of its request was made yet.
    needs_reset = False
    # Of its connections, when its last call ended.
    has_obsolete_connections = False
    is_in_transaction = False

    def __init__(self) -> None:
        calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self.put = calls.put
        # A daemon, or the interpreter would wait for it before it asks join_all().
        thread = Thread(target=work, args=(calls,), name="request", daemon=True)
        # In no request's context: Sentry would give each later request's records in
        # this thread the user of the first.
        Context().run(thread.start)
        workers[thread] = self.put

    def __del__(self) -> None:
        self.put(None)

    def look_at_connections(self) -> None:
        """Called in the thread."""
        self.has_obsolete_connections = has_obsolete_connections()
        self.is_in_transaction = self.has_obsolete_connections and any(
            connection.in_atomic_block for connection in own_connections()
        )


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

    def acquire(self) -> Worker:
        try:
            # The thread last used is the likeliest to have a live connection.
            worker = self._idle.pop()
        except IndexError:
            worker = Worker()
        worker.needs_reset = True
        return worker

    def release(self, worker: Worker, busy: bool) -> None:
        if busy:
            # A cancelled request left a call running, which nobody should await.
            worker.put(partial(self.release, worker, busy=False))
            return
        if not worker.is_in_transaction:
            if worker.has_obsolete_connections:
                # In the thread's own queue, so before any call of its next request.
                worker.put(close_old_connections)
            with self._lock:
                if not self._closed and len(self._idle) < self.max_idle:
                    self._idle.append(worker)
                    return
        # Django gives up a connection that was closed within a transaction only
        # together with its thread.
        worker.put(close_connections)
        worker.put(None)

    async def shutdown(self) -> None:
        """Close idle threads now, and acquired ones when they are released."""
        with self._lock:
            self._closed = True
            threads = list(self._idle)
            self._idle.clear()
        loop = asyncio.get_running_loop()
        closed = [loop.create_future() for _ in threads]
        for worker, future in zip(threads, closed, strict=True):
            resolve = partial(_resolve_future, future, None, None)
            worker.put(close_connections)
            worker.put(partial(loop.call_soon_threadsafe, resolve))
            worker.put(None)
        await asyncio.gather(*closed)


class RequestThread(Executor):
    """Runs the thread-sensitive calls made in its ``with`` block.

    It acquires a thread at the first call and releases it at the end of the block. A
    task that outlives the block acquires another at its next call and keeps it until
    the task ends.
    """

    def __init__(self, pool: ThreadPool) -> None:
        self._pool = pool
        self._worker: Worker | None = None
        self._token: Token[ThreadSensitiveContext] | None = None
        # The one is counted by the loop, the other by the thread.
        self._submitted = self._finished = 0
        self._exited = False
        self._outliving_tasks: WeakSet[asyncio.Task[Any]] | None = None

    def __enter__(self) -> Self:
        # ThreadSensitiveContext(executor=self) does the same, but refuses the calls of
        # tasks that outlive it, and takes the calls of a test that runs inside
        # async_to_sync() away from the thread of that test.
        context = ThreadSensitiveContext()
        SyncToAsync.context_to_thread_executor[context] = self
        self._token = SyncToAsync.thread_sensitive_context.set(context)
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._token is not None
        SyncToAsync.thread_sensitive_context.reset(self._token)
        # A token holds the context that it was made in, and so this object.
        self._token = None
        self._exited = True
        self._release()

    def submit(  # type: ignore[override]
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> asyncio.Future[Any]:
        """For loop.run_in_executor(), which takes a future of the loop as it is."""
        if self._exited:
            self._keep_until_done(asyncio.current_task())
        if self._worker is None:
            self._worker = self._pool.acquire()
        worker = self._worker
        future = asyncio.get_running_loop().create_future()
        self._submitted += 1
        worker.put(partial(self._run, worker, future, partial(fn, *args, **kwargs)))
        return future

    def _run(
        self, worker: Worker, future: asyncio.Future[Any], call: Callable[[], Any]
    ) -> None:
        result = error = None
        try:
            if not future.cancelled():
                if worker.needs_reset:
                    worker.needs_reset = False
                    # Django's receivers of request_started.
                    reset_queries()
                    close_old_connections()
                try:
                    result = call()
                finally:
                    worker.look_at_connections()
        except BaseException as exc:  # noqa: BLE001
            error = exc
        self._finished += 1
        # Nobody waits any more if the loop is closed.
        with suppress(RuntimeError):
            future.get_loop().call_soon_threadsafe(
                _resolve_future, future, result, error
            )
        # The one leads to this frame, and the other to the one.
        del error, future

    @property
    def running(self) -> bool:
        """Whether a call still runs, or waits for the thread."""
        return self._submitted != self._finished

    @property
    def inside_async_to_sync(self) -> bool:
        """Whether async_to_sync() takes the calls to its own thread, past this one."""
        return bool(getattr(AsyncToSync.executors, "current", None))

    def _release(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            self._pool.release(worker, self.running)

    def _keep_until_done(self, task: asyncio.Task[Any] | None) -> None:
        tasks = self._outliving_tasks = self._outliving_tasks or WeakSet()
        if task is not None and task not in tasks:
            tasks.add(task)
            task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[Any]) -> None:
        assert self._outliving_tasks is not None
        self._outliving_tasks.discard(task)
        if not self._outliving_tasks:
            self._release()


def _resolve_future(
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


def own_connections() -> Iterator[BaseDatabaseWrapper]:
    """Of this thread; a test may share its own with every thread."""
    for connection in connections.all(initialized_only=True):
        if not connection.allow_thread_sharing:
            yield connection


def close_connections() -> None:
    for connection in own_connections():
        connection.close()


def has_obsolete_connections() -> bool:
    """Whether close_old_connections() would find something: it asks for the same."""
    now = time.monotonic()
    return any(
        connection.connection is not None
        and (
            connection.errors_occurred
            or connection.in_atomic_block
            or connection.autocommit != connection.settings_dict["AUTOCOMMIT"]
            or (connection.close_at is not None and now >= connection.close_at)
        )
        for connection in connections.all(initialized_only=True)
    )
