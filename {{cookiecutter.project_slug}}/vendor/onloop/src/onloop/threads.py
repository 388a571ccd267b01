"""Threads for synchronous work, one for each request that needs one.

Stock Django starts a thread, and opens a database connection in it, for every request
that makes a synchronous call. Here a request acquires a thread that already has its
connection, so persistent connections persist; when REQUEST_THREADS of them are taken,
it waits for one.
"""

import asyncio
import atexit
import logging
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from contextvars import Context, Token
from functools import partial
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any, Self
from weakref import WeakKeyDictionary, WeakSet, ref

from asgiref.sync import AsyncToSync, SyncToAsync, ThreadSensitiveContext
from django.conf import settings
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from onloop.outcome import Refusal

logger = logging.getLogger("onloop.threads")

# The default of REQUEST_THREADS. Each thread of each worker process can hold a database
# connection, so their product must not exceed the database's limit.
LIMIT = 40
# Seconds that a request waits for a thread.
WAIT = 10.0
# Seconds that threads have to finish when the server stops, and when the process exits.
SHUTDOWN = 0.3
# Seconds between two warnings that streams hold threads.
WARNING_INTERVAL = 60


class NoThread(Refusal):
    """The request got no thread."""

    headers = {"Retry-After": "10"}  # noqa: RUF012


@contextmanager
def acquire_thread() -> Iterator[None]:
    """Acquire a thread for the calls in the block, and release it at the end.

    For streams and other code that needs the database now and then. A thread that the
    request had acquired before is released too, unless a call still runs in it or a
    transaction is open; the next call acquires another. Cursors, and iterators over
    them, must not leave the block. Without onloop's handler it does nothing.
    """
    context = SyncToAsync.thread_sensitive_context.get(None)
    executor = context and SyncToAsync.context_to_thread_executor.get(context)
    if not isinstance(executor, RequestThread):
        yield
        return
    executor.open_blocks += 1
    try:
        yield
    finally:
        executor.open_blocks -= 1
        executor.release_if_unused()


class Worker:
    """A thread that makes calls one after another, until it gets None."""

    # A ThreadPoolExecutor with one worker needs as long for its futures, locks and
    # semaphore as the rest of a call to a small view takes.

    def __init__(self, pool: "ThreadPool") -> None:
        # Whether the call that comes is the first of its request.
        self.needs_reset = False
        # Its connections after its last call: whether any must be closed or reset,
        # whether a block or transaction is open, and when the first gets too old.
        self.needs_cleaning = False
        self.is_unfinished = False
        self.close_at = math.inf
        # Looked up when a request begins and when one ends: the lookup is slow.
        self.connections: Sequence[BaseDatabaseWrapper] = ()
        calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self.put = calls.put
        self.resets_connections = pool.resets_connections
        # A daemon, because the interpreter waits for others before it calls join_all().
        self.thread = Thread(
            target=work, args=(calls, ref(self), ref(pool)), name="request", daemon=True
        )
        # In an empty context: otherwise Sentry would give the records of each later
        # request in this thread the user of the first.
        Context().run(self.thread.start)
        workers[self.thread] = self.put

    def __del__(self) -> None:
        self.put(None)

    def look_at_connections(self) -> None:
        """Called in the thread."""
        self.needs_cleaning = self.is_unfinished = False
        self.close_at = math.inf
        for connection in self.connections:
            if is_unfinished(connection):
                self.needs_cleaning = self.is_unfinished = True
            elif connection.connection is not None:
                if self.resets_connections or connection.errors_occurred:
                    self.needs_cleaning = True
                if connection.close_at is not None:
                    self.close_at = min(self.close_at, connection.close_at)
        if self.close_at <= time.monotonic():
            self.needs_cleaning = True

    def clean_connections(self) -> None:
        """Called in the thread, when its request is over."""
        for connection in own_connections():
            try:
                clean(connection, self.resets_connections)
            except Exception:
                logger.exception("A connection could not be cleaned and is discarded")
                discard(connection)
        self.connections = list(own_connections())
        self.look_at_connections()


def work(
    calls: SimpleQueue[Callable[[], object] | None],
    worker: "ref[Worker]",
    pool: "ref[ThreadPool]",
) -> None:
    while True:
        try:
            call = calls.get(timeout=seconds_until_too_old(worker()))
        except Empty:
            close_too_old(worker(), pool())
            continue
        if call is None:
            return
        try:
            call()
        except Exception:
            logger.exception("A call in a request's thread failed")
        del call


def seconds_until_too_old(worker: Worker | None) -> float | None:
    if worker is None or worker.close_at == math.inf:
        return None
    return max(0, worker.close_at - time.monotonic())


def close_too_old(worker: Worker | None, pool: "ThreadPool | None") -> None:
    if worker is not None and pool is not None:
        # If it is not idle, the age is checked again after the next call.
        worker.close_at = math.inf
        pool.clean_idle(worker)


workers: WeakKeyDictionary[Thread, Callable[[None], None]] = WeakKeyDictionary()


@atexit.register
def join_all() -> None:
    """Wait for running calls, for a limited time, before the interpreter exits."""
    ending = list(workers.items())
    for _, put in ending:
        put(None)
    deadline = time.monotonic() + SHUTDOWN
    for thread, _ in ending:
        thread.join(max(0, deadline - time.monotonic()))


_pools: WeakSet["ThreadPool"] = WeakSet()


def thread_usage() -> tuple[int, int]:
    """How many threads requests hold, and how many requests wait for one."""
    in_use = sum(len(pool._workers) - len(pool._idle) for pool in _pools)
    return in_use, sum(len(pool._waiting) for pool in _pools)


class ThreadPool:
    """At most ``limit`` threads; further requests wait for one, in order.

    Each waits for ``wait_seconds`` at most, or without a limit if that is None.
    """

    def __init__(self, limit: int = LIMIT, wait_seconds: float | None = WAIT) -> None:
        self.limit = limit
        self.wait_seconds = wait_seconds
        self.resets_connections = getattr(settings, "REQUEST_CONNECTION_RESET", False)
        # For the threads and the waiting requests, which threads change too.
        self._lock = Lock()
        self._workers: set[Worker] = set()
        self._idle: deque[Worker] = deque()
        self._waiting: OrderedDict[RequestThread, None] = OrderedDict()
        self._closed = False
        self.streams: set[RequestThread] = set()
        self._next_warning = 0.0
        _pools.add(self)

    def thread(self) -> "RequestThread":
        return RequestThread(self)

    def acquire(self, waiter: "RequestThread | None" = None) -> Worker | None:
        """Return a thread; or None if all are taken, and the waiter gets the next."""
        with self._lock:
            if self._idle:
                # The thread last used is the likeliest to have a live connection.
                worker = self._idle.pop()
            elif len(self._workers) < self.limit:
                try:
                    worker = Worker(self)
                except RuntimeError as exc:
                    raise NoThread(f"No thread: {exc}") from exc
                self._workers.add(worker)
            else:
                if waiter is not None:
                    self._waiting[waiter] = None
                return None
        worker.needs_reset = True
        return worker

    def leave(self, waiter: "RequestThread") -> bool:
        """Stop waiting; return whether it still was."""
        with self._lock:
            return self._waiting.pop(waiter, self) is None

    def release(self, worker: Worker, busy: bool) -> None:
        if busy or worker.needs_cleaning:
            # A cancelled request's call may hang in a database that does not answer, so
            # nobody waits for it; the thread is idle when it has finished.
            worker.put(partial(self._clean, worker))
        else:
            self.hand_on(worker)

    def _clean(self, worker: Worker) -> None:
        try:
            worker.clean_connections()
        finally:
            self.hand_on(worker)

    def clean_idle(self, worker: Worker) -> None:
        """Called in the worker's thread, which a request may just have acquired."""
        with self._lock:
            if worker not in self._idle:
                return
            self._idle.remove(worker)
        self._clean(worker)

    def hand_on(self, worker: Worker) -> None:
        """Called in an event loop or in the worker's thread."""
        while True:
            with self._lock:
                if not self._waiting:
                    if not self._closed:
                        self._idle.append(worker)
                        return
                    self._workers.discard(worker)
                    break
                waiter, _ = self._waiting.popitem(last=False)
            # Nobody waits any more if the loop is closed.
            with suppress(RuntimeError):
                waiter.loop.call_soon_threadsafe(waiter.start, worker)
                return
        worker.put(close_connections)
        worker.put(None)

    def note_stream(self, thread: "RequestThread") -> None:
        """Count a stream that holds a thread outside of acquire_thread()."""
        self.streams.add(thread)
        now = time.monotonic()
        if len(self.streams) * 2 > self.limit and now >= self._next_warning:
            self._next_warning = now + WARNING_INTERVAL
            logger.warning(
                "Streams hold %d of %d threads (REQUEST_THREADS) until they end: let "
                "them use the database within onloop.threads.acquire_thread()",
                len(self.streams),
                self.limit,
            )

    async def shutdown(self) -> None:
        """Close idle threads now, and acquired ones when they are released.

        Threads that hang are abandoned, both now and when the process exits.
        """
        with self._lock:
            self._closed = True
            threads = list(self._idle)
            self._idle.clear()
        loop = asyncio.get_running_loop()
        closed = [loop.create_future() for _ in threads]
        for worker, future in zip(threads, closed, strict=True):
            resolve = partial(_resolve_future, future, None, None)
            worker.put(close_connections)
            worker.put(partial(call_in_loop, loop, resolve))
            worker.put(None)
        try:
            if closed:
                await asyncio.wait(closed, timeout=SHUTDOWN)
        finally:
            with self._lock:
                for worker in self._workers:
                    workers.pop(worker.thread, None)
                self._workers.difference_update(threads)


class RequestThread(Executor):
    """Runs the thread-sensitive calls made in its ``with`` block.

    It acquires a thread at the first call, waits for one if all are taken, and releases
    it at the end of the block. A task that outlives the block acquires another at its
    next call and keeps it until the task ends.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(self, pool: ThreadPool) -> None:
        self._pool = pool
        self._worker: Worker | None = None
        self._token: Token[ThreadSensitiveContext] | None = None
        # Counted by the loop and by the thread, respectively.
        self._submitted = self._finished = 0
        self._exited = False
        self._outliving_tasks: WeakSet[asyncio.Task[Any]] | None = None
        # Calls that wait for a thread.
        self._pending: Sequence[tuple[asyncio.Future[Any], Callable[[], Any]]] = ()
        self._timer: asyncio.TimerHandle | None = None
        # It waited in vain and must not wait again: Django needs a thread once more to
        # pass the exception to the middleware.
        self._refused = False
        self._is_stream = False
        # How many blocks of acquire_thread() it is in.
        self.open_blocks = 0

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
        # A token refers to the context in which it was created, and so to this object.
        self._token = None
        self._exited = True
        self._release()

    def submit(  # type: ignore[override]
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> asyncio.Future[Any]:
        """For loop.run_in_executor(), which accepts a future of the loop as it is."""
        self.loop = asyncio.get_running_loop()
        if self._exited:
            self._keep_until_done(asyncio.current_task())
        future = self.loop.create_future()
        call = partial(fn, *args, **kwargs)
        try:
            if self.acquire(self):
                self._put(future, call)
            else:
                self._wait(future, call)
        except NoThread as exc:
            future.set_exception(exc)
        return future

    def acquire(self, waiter: "RequestThread | None" = None) -> bool:
        """Return whether it has a thread now; otherwise the waiter will get one."""
        if self._worker is None and not self._pending:
            self._worker = self._pool.acquire(waiter)
            self._note_stream()
        return self._worker is not None

    def _put(self, future: asyncio.Future[Any], call: Callable[[], Any]) -> None:
        assert self._worker is not None
        self._submitted += 1
        self._worker.put(partial(self._run, self._worker, future, call))

    def _wait(self, future: asyncio.Future[Any], call: Callable[[], Any]) -> None:
        seconds = 0 if self._refused else self._pool.wait_seconds
        if not self._pending and seconds is not None:
            self._timer = self.loop.call_later(seconds, self._refuse)
        self._pending = [*self._pending, (future, call)]
        future.add_done_callback(self._on_future_done)

    def _on_future_done(self, future: asyncio.Future[Any]) -> None:
        """Remove a call that was cancelled while it waited."""
        self._pending = [call for call in self._pending if not call[0].done()]
        if not self._pending:
            self._stop_waiting()

    def _stop_waiting(self) -> bool:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return self._pool.leave(self)

    def start(self, worker: Worker) -> None:
        """Called in the loop when the pool hands on a thread."""
        self._stop_waiting()
        pending = [call for call in self._pending if not call[0].done()]
        self._pending = ()
        if not pending:
            # All calls were cancelled; it may have acquired another thread since.
            self._pool.hand_on(worker)
            return
        worker.needs_reset = True
        self._worker = worker
        self._refused = False
        self._note_stream()
        for call in pending:
            self._put(*call)
        if self._exited and not self._outliving_tasks:
            self._release()

    def _refuse(self) -> None:
        if not self._stop_waiting():
            # It is about to get one.
            return
        self._refused = True
        taken = f"all {self._pool.limit} (REQUEST_THREADS) are taken"
        reason = f"No thread in {self._pool.wait_seconds:g} seconds: {taken}"
        pending, self._pending = self._pending, ()
        for future, _ in pending:
            if not future.done():
                future.set_exception(NoThread(reason))

    def _run(
        self, worker: Worker, future: asyncio.Future[Any], call: Callable[[], Any]
    ) -> None:
        result = error = None
        try:
            if not future.cancelled():
                if worker.needs_reset:
                    worker.needs_reset = False
                    worker.connections = prepare_connections()
                try:
                    result = call()
                finally:
                    worker.look_at_connections()
        except BaseException as exc:  # noqa: BLE001
            error = exc
        self._finished += 1
        resolve = partial(_resolve_future, future, result, error)
        call_in_loop(future.get_loop(), resolve)
        # The error refers to this frame, and the frame to the error.
        del error, future, resolve

    @property
    def running(self) -> bool:
        """Whether a call still runs, or waits for the thread."""
        return self._submitted != self._finished

    @property
    def inside_async_to_sync(self) -> bool:
        """Whether async_to_sync() runs the calls in its own thread instead of this."""
        return bool(getattr(AsyncToSync.executors, "current", None))

    def start_stream(self) -> None:
        self._is_stream = True
        self._note_stream()

    def _note_stream(self) -> None:
        if self._is_stream and self._worker is not None and not self.open_blocks:
            self._pool.note_stream(self)

    def release_if_unused(self) -> None:
        """Release the thread unless a call runs or something is open in it."""
        if (
            self._worker is not None
            and not self.running
            and not self._worker.is_unfinished
            and not self.open_blocks
        ):
            self._release()

    def _release(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            self._pool.release(worker, self.running)
            self._pool.streams.discard(self)

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
        # As asyncio does from Python 3.12: no coroutine can raise StopIteration.
        future.set_exception(RuntimeError(f"A call raised {error!r}"))
    elif error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def call_in_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    # Nobody waits any more if the loop is closed.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(call)


def own_connections() -> Iterator[BaseDatabaseWrapper]:
    """Those of this thread, without those that a test shares with all threads."""
    for connection in connections.all(initialized_only=True):
        if not connection.allow_thread_sharing:
            yield connection


def close_connections() -> None:
    for connection in own_connections():
        connection.close()


def is_unfinished(connection: BaseDatabaseWrapper) -> bool:
    return bool(
        connection.in_atomic_block
        or (connection.connection is not None and not connection.autocommit)
        or (connection.execute_wrappers and has_foreign_wrapper(connection))
    )


def clean(connection: BaseDatabaseWrapper, resets: bool) -> None:
    if connection.in_atomic_block or has_foreign_wrapper(connection):
        discard(connection)
    elif connection.connection is not None:
        if not connection.autocommit:
            connection.rollback()
        if resets and getattr(connection, "pool", None):
            # Django would return it to the pool as it is.
            connection.connection.close()
            connection.close()
        # As Django's receiver of request_finished does.
        connection.close_if_unusable_or_obsolete()
        if resets and connection.connection is not None:
            reset(connection)


def reset(connection: Any) -> None:
    if connection.vendor == "postgresql" and connection.autocommit:
        with connection.connection.cursor() as cursor:
            cursor.execute("DISCARD ALL")
        connection.init_connection_state()
    else:
        connection.close()


def discard(connection: BaseDatabaseWrapper) -> None:
    """Close it, which rolls back, and let the thread's next query open another.

    A connection that Django closes within a transaction cannot be used until the
    transaction's block is left, and nobody is going to leave this one.
    """
    # Otherwise the old block could still end on the connection of another request.
    del connections[connection.alias]
    with suppress(Exception):
        connection.close()


def prepare_connections() -> list[BaseDatabaseWrapper]:
    """Called in the thread before a request's first call; returns its connections."""
    prepared = []
    for alias in connections:
        try:
            connection: Any = connections[alias]
        except Exception:  # noqa: BLE001, S112
            # It will fail where it is used.
            continue
        if connection.allow_thread_sharing:
            continue
        prepared.append(connection)
        # Not in a receiver of connection_created, because Sentry reports each receiver.
        if "connect" not in vars(connection):
            vars(connection)["connect"] = partial(
                connect, connection, connection.connect
            )
        # As Django's receivers of request_started do.
        connection.queries_log.clear()
        connection.close_if_unusable_or_obsolete()
    return prepared


# The execute wrappers that receivers of connection_created install on each connection,
# such as server_timing's. All others belong to a request.
installed: WeakKeyDictionary[BaseDatabaseWrapper, list[Any]] = WeakKeyDictionary()


def connect(connection: BaseDatabaseWrapper, method: Callable[[], None]) -> None:
    before = list(connection.execute_wrappers)
    method()
    known = installed.get(connection, ())
    installed[connection] = [
        wrapper
        for wrapper in connection.execute_wrappers
        if wrapper in known or wrapper not in before
    ]


def has_foreign_wrapper(connection: BaseDatabaseWrapper) -> bool:
    known = installed.get(connection, ())
    return not all(wrapper in known for wrapper in connection.execute_wrappers)
