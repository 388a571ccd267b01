import asyncio
import errno
import io
import logging.handlers
import os
import select
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module, util
from typing import Any
from weakref import WeakSet

from onloop._compat import uvicorn_server
from onloop.logging.formatter import Formatter, Snapshot

# Not on Windows, where lines of several processes on one stream may be mixed.
fcntl: Any = import_module("fcntl") if util.find_spec("fcntl") else None
# When the queue is stopped: seconds without progress after which a reader counts as
# stalled, and seconds in total.
STALL = 0.5
TIMEOUT = 5

_handlers: WeakSet["QueueHandler"] = WeakSet()
# For each open file, held by the thread that writes to it.
_locks: defaultdict[tuple[int, ...], threading.Lock] = defaultdict(threading.Lock)


def start() -> None:
    """Called when the server starts."""
    for handler in list(_handlers):
        handler.start()


async def stop(timeout: float = TIMEOUT) -> None:  # noqa: ASYNC109
    """Called when the server stops; waits until all is written, or the reader stalls.

    It polls, because there may be no thread in which to wait.
    """
    for _ in stopping(list(_handlers), timeout=timeout):
        await asyncio.sleep(0.005)


def stopping(
    handlers: list["QueueHandler"], stall: float = STALL, timeout: float = TIMEOUT
) -> Iterator[None]:
    """Stop the handlers; the caller iterates to the end, and waits at each step."""
    handlers = [handler for handler in handlers if handler.thread]
    for handler in handlers:
        handler.stopping.set()
        handler.wake.set()
    start = progress = time.monotonic()
    written = -1
    while any(handler.thread for handler in handlers):
        now = time.monotonic()
        if written != (written := sum(handler.written for handler in handlers)):
            progress = now
        if now > min(progress + stall, start + timeout):
            break
        yield
    for handler in handlers:
        with handler.lock:
            if handler.thread is None:
                handler.write_waiting()
            else:
                # Better to lose lines than to hang.
                handler.setLevel(logging.CRITICAL + 1)
                handler.thread = None


def _start_anew_in_child() -> None:
    # The parent's thread writes the lines in its queue, and may hold a lock.
    _locks.clear()
    for handler in list(_handlers):
        handler.reset()


if hasattr(os, "register_at_fork"):
    # Not on Windows, which does not fork.
    os.register_at_fork(after_in_child=_start_anew_in_child)


def dropped_lines() -> int:
    """How many lines the handlers of this process have dropped."""
    return sum(handler.dropped for handler in _handlers)


def never_blocks(name: str) -> bool:
    """Whether a line of this logger may be logged on the event loop."""
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None:
        if not all(map(is_non_blocking, logger.handlers)):
            return False
        logger = logger.parent if logger.propagate else None
    return True


def is_non_blocking(handler: logging.Handler) -> bool:
    types = QueueHandler | logging.handlers.QueueHandler | logging.NullHandler
    if isinstance(handler, types):
        return True
    # Such as those of pytest.
    is_devnull = getattr(handler, "baseFilename", None) == os.devnull
    return is_devnull or isinstance(getattr(handler, "stream", None), io.StringIO)


class QueueHandler(logging.StreamHandler[Any]):
    """Writes to stderr: at once, or in a thread while the server runs.

    So a slow log consumer never blocks a request. When ``capacity`` lines or about
    ``max_bytes`` wait, further lines are dropped and counted, and a line says how many
    when there is room again.
    """

    lock: threading.RLock
    # Seconds for which lines are gathered and then written together.
    flush_interval = 0.02

    def __init__(self, capacity: int = 10_000, max_bytes: int = 16 * 2**20) -> None:
        super().__init__()
        self.capacity = capacity
        self.max_bytes = max_bytes
        self.reset()
        _handlers.add(self)

    def reset(self) -> None:
        self.waiting: deque[Snapshot | str] = deque()
        # Bytes and lines; counted separately by those who log and by the thread that
        # writes, and so without a lock.
        self.put_bytes = self.taken_bytes = 0
        self.dropped = self.reported = self.written = 0
        self.server: Any = None
        self.thread: threading.Thread | None = None
        self.wake = threading.Event()
        self.stopping = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Called under the handler's lock, as Handler.handle() does."""
        try:
            if self.thread is not None and getattr(self.server, "force_exit", False):
                self.stop()
            if self.thread is None:
                # stop() raises the level if the reader has stalled.
                if record.levelno >= self.level:
                    self.write_lines([self.format(record)])
            elif (
                len(self.waiting) >= self.capacity
                or self.put_bytes - self.taken_bytes >= self.max_bytes
            ):
                self.dropped += 1
            else:
                formatter: Any = self.formatter
                # Another formatter may use values that change, so it formats now.
                ours = getattr(type(formatter), "format", 0) is Formatter.format
                entry: Any = (formatter.take_snapshot if ours else self.format)(record)
                self.put_bytes += entry.size if ours else len(entry)
                self.waiting.append(entry)
                if not self.wake.is_set():
                    self.wake.set()
        except Exception:  # noqa: BLE001
            self.handleError(record)

    def start(self) -> None:
        if self.thread is not None:
            return
        self.stopping.clear()
        # If uvicorn is interrupted while it stops, it skips the end of the lifespan and
        # may end the process by a signal, without atexit.
        self.server = uvicorn_server()
        thread = threading.Thread(target=self.run, name="log", daemon=True)
        thread.start()
        self.thread = thread

    def stop(self, stall: float = STALL, timeout: float = TIMEOUT) -> None:
        """Write the waiting lines, unless the reader stalls for so long; blocks."""
        for _ in stopping([self], stall, timeout):
            time.sleep(0.005)

    def close(self) -> None:
        # Called at exit, also after a second CONTROL-C, which skips the lifespan's end.
        self.stop()
        super().close()

    def run(self) -> None:
        while not self.stopping.is_set():
            self.wake.wait()
            self.stopping.wait(self.flush_interval)
            self.wake.clear()
            self.write_waiting()
        while self.waiting:
            self.write_waiting()
        self.thread = None

    def write_waiting(self) -> None:
        formatter: Any = self.formatter
        # Lines that are logged meanwhile wait for the next batch. Each write lets the
        # event loop run and log, so otherwise each line would be a batch of its own.
        remaining = len(self.waiting)
        while remaining or self.dropped > self.reported:
            lines = []
            size = 0
            while remaining and size < 65_536:
                remaining -= 1
                entry = self.waiting.popleft()
                size += size_of(entry)
                if not isinstance(entry, str):
                    entry = formatter.format_snapshot(entry)
                lines.append(entry)
            self.write_lines(lines)
            self.taken_bytes += size
            if dropped := self.dropped - self.reported:
                self.reported += dropped
                message = f"{dropped} log lines were dropped"
                facts: dict[str, Any] = {"name": "onloop.logging", "msg": message}
                facts |= {"levelname": "WARNING", "dropped": dropped}
                record = logging.makeLogRecord(facts)
                try:
                    self.write_lines([self.format(record)])
                except Exception:  # noqa: BLE001
                    self.handleError(record)

    def write_lines(self, lines: list[str]) -> None:
        # Logging must not fail because the reader is gone or the stream is closed.
        text = "".join([f"{line}\n" for line in lines])
        with suppress(OSError, ValueError):
            try:
                descriptor = self.stream.fileno()
                if fcntl is None and os.isatty(descriptor):
                    # Only the stream translates UTF-8 for the console of Windows.
                    raise OSError
            except OSError:
                self.stream.write(text)
                return
            with _locks[os.fstat(descriptor)[1:3]], lock(descriptor):
                self.write(descriptor, text.encode(errors="backslashreplace"))

    def write(self, descriptor: int, rest: bytes) -> None:
        """Bypass the stream: a thread that waits for a stalled reader while it holds
        the stream's lock would keep the interpreter from exiting.
        """
        while rest:
            try:
                rest = rest[os.write(descriptor, rest) :]
                self.written += 1
            except BlockingIOError:
                select.select([], [descriptor], [])

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""


def size_of(entry: Snapshot | str) -> int:
    return len(entry) if isinstance(entry, str) else entry.size


@contextmanager
def lock(descriptor: int) -> Iterator[None]:
    """Let processes take turns, because a pipe accepts more than PIPE_BUF in pieces.

    Linux locks pipes, sockets and terminals like files: for one process, also if it
    inherited the descriptor, and at most until it ends.
    """
    while fcntl is not None:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno == errno.EDEADLK:
                # No deadlock: Linux does not know which thread waits for which file.
                time.sleep(0.001)
                continue
        break
    try:
        yield
    finally:
        if fcntl is not None:
            with suppress(OSError):
                fcntl.lockf(descriptor, fcntl.LOCK_UN)
