"""Threads for synchronous work, one for each request that needs one.

Stock Django starts a thread, and opens a database connection in it, for every
request that makes a synchronous call. Here a request borrows a thread that
already has its connection, so persistent connections persist.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextvars import Token
from functools import partial
from threading import Lock
from typing import Any, Self
from weakref import WeakSet

from asgiref.sync import AsyncToSync, SyncToAsync, ThreadSensitiveContext
from django.db import close_old_connections, connections, reset_queries

# As many as asyncio's own default executor may have. Each can hold an open
# database connection, so a server's limit divides by this and the workers.
MAX_IDLE = 32


class ThreadPool:
    def __init__(self, max_idle: int = MAX_IDLE) -> None:
        self.max_idle = max_idle
        self._idle: deque[ThreadPoolExecutor] = deque()
        self._lock = Lock()
        self._closed = False

    def thread(self) -> "RequestThread":
        return RequestThread(self)

    def borrow(self) -> ThreadPoolExecutor:
        try:
            # The thread last used is the likeliest to have a live connection.
            return self._idle.pop()
        except IndexError:
            return ThreadPoolExecutor(1, thread_name_prefix="request")

    def give_back(self, thread: ThreadPoolExecutor, busy: bool) -> None:
        # In the thread's own queue, and so before any call of its next request.
        thread.submit(close_old_connections)
        if busy:
            # A cancelled request left a call running, which nobody should await.
            thread.submit(self._keep, thread)
        else:
            self._keep(thread)

    def _keep(self, thread: ThreadPoolExecutor) -> None:
        with self._lock:
            if not self._closed and len(self._idle) < self.max_idle:
                self._idle.append(thread)
                return
        thread.submit(connections.close_all)
        thread.shutdown(wait=False)

    async def shutdown(self) -> None:
        """Close idle threads now, and borrowed ones when they are given back."""
        with self._lock:
            self._closed = True
            threads = list(self._idle)
            self._idle.clear()
        loop = asyncio.get_running_loop()
        closing = [loop.run_in_executor(t, connections.close_all) for t in threads]
        for thread in threads:
            thread.shutdown(wait=False)
        await asyncio.gather(*closing)


class RequestThread(Executor):
    """Runs the thread-sensitive calls made in its ``with`` block.

    It borrows a thread at the first call and gives it back at the end of the
    block. A task that outlives the block borrows another at its next call and
    keeps it until the task ends.
    """

    def __init__(self, pool: ThreadPool) -> None:
        self._pool = pool
        self._thread: ThreadPoolExecutor | None = None
        self._token: Token[ThreadSensitiveContext] | None = None
        self._calls: list[Future[Any]] = []
        self._ended = False
        self._survivors: WeakSet[asyncio.Task[Any]] = WeakSet()

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
        self.shutdown()

    def submit(
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Future[Any]:
        if self._ended:
            self._keep_until_done(asyncio.current_task())
        if self._thread is None:
            self._thread = self._pool.borrow()
            call = self._thread.submit(_first, partial(fn, *args, **kwargs))
        else:
            call = self._thread.submit(fn, *args, **kwargs)
        self._calls = [*(c for c in self._calls if not c.done()), call]
        return call

    @property
    def running(self) -> bool:
        """Whether a call still runs, or waits for the thread."""
        return any(not call.done() for call in self._calls)

    @property
    def bridged(self) -> bool:
        """Whether async_to_sync() takes the calls to its own thread, past this one."""
        return bool(getattr(AsyncToSync.executors, "current", None))

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._pool.give_back(thread, self.running)
            self._calls.clear()

    def _keep_until_done(self, task: asyncio.Task[Any] | None) -> None:
        if task is not None and task not in self._survivors:
            self._survivors.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._survivors.discard(task)
        if not self._survivors:
            self.shutdown()


def _first(fn: Callable[[], Any]) -> Any:
    # Django's own receivers of request_started, where they have something to do.
    reset_queries()
    close_old_connections()
    return fn()
