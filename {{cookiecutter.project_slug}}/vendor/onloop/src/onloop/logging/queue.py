import io
import logging
import logging.handlers
import os
import select
import threading
from collections import deque
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from onloop.logging.formatter import Formatter, Snapshot, take_snapshot

_handlers: WeakSet["QueueHandler"] = WeakSet()


def start() -> None:
    """Called when the server starts."""
    for handler in list(_handlers):
        handler.start()


def stop(timeout: float = 5) -> None:
    """Called when the server stops; blocks until all is written."""
    for handler in list(_handlers):
        handler.stop(timeout)


def never_blocks(name: str) -> bool:
    """Whether a line of this logger may be logged on the event loop."""
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None:
        if not all(map(is_non_blocking, logger.handlers)):
            return False
        logger = logger.parent if logger.propagate else None
    return True


def is_non_blocking(handler: logging.Handler) -> bool:
    if isinstance(
        handler, QueueHandler | logging.handlers.QueueHandler | logging.NullHandler
    ):
        return True
    # Such as pytest's.
    stream = getattr(handler, "stream", None)
    return isinstance(stream, io.StringIO) or (
        getattr(handler, "baseFilename", None) == os.devnull
    )


class QueueHandler(logging.StreamHandler[Any]):
    """Writes to stderr: at once, and while the server runs by a queue and a thread.

    So a slow log consumer never blocks a request. When ``capacity`` lines wait, further
    ones are dropped and counted, and a line says how many when there is room again.
    """

    lock: threading.RLock
    capacity = 10_000
    # Seconds for which lines are gathered and then written together.
    flush_interval = 0.02

    def __init__(self) -> None:
        super().__init__()
        self.waiting: deque[Snapshot | str] = deque()
        self.dropped = 0
        self.thread: threading.Thread | None = None
        self.wake = threading.Event()
        self.stopping = threading.Event()
        _handlers.add(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Called under the handler's lock, as Handler.handle() does."""
        try:
            if self.thread is None:
                self.write_lines([self.format(record)])
            elif len(self.waiting) >= self.capacity:
                self.dropped += 1
            else:
                # Another formatter may look at what changes, so it formats now.
                ours = getattr(type(self.formatter), "format", 0) is Formatter.format
                self.waiting.append(
                    take_snapshot(record) if ours else self.format(record)
                )
                if not self.wake.is_set():
                    self.wake.set()
        except Exception:  # noqa: BLE001
            self.handleError(record)

    def start(self) -> None:
        self.stopping.clear()
        self.thread = threading.Thread(target=self.run, name="log", daemon=True)
        self.thread.start()

    def stop(self, timeout: float) -> None:
        """Write what waits, for at most so many seconds; blocks."""
        thread = self.thread
        if thread is None:
            return
        self.stopping.set()
        self.wake.set()
        thread.join(timeout)
        with self.lock:
            if thread.is_alive():
                # Nobody reads. Better to lose lines than to hang.
                self.setLevel(logging.CRITICAL + 1)
            else:
                self.thread = None
                self.write_waiting()

    def close(self) -> None:
        # Called at exit, also after a second CONTROL-C, when no lifespan ends.
        self.stop(5)
        super().close()

    def run(self) -> None:
        while not self.stopping.is_set():
            self.wake.wait()
            self.stopping.wait(self.flush_interval)
            self.wake.clear()
            self.write_waiting()

    def write_waiting(self) -> None:
        formatter: Any = self.formatter
        while self.waiting or self.dropped:
            batch = [self.waiting.popleft() for _ in range(min(len(self.waiting), 500))]
            self.write_lines(
                [
                    w if isinstance(w, str) else formatter.format_snapshot(w)
                    for w in batch
                ]
            )
            if self.dropped:
                with self.lock:
                    dropped, self.dropped = self.dropped, 0
                facts = {
                    "name": "onloop.logging",
                    "levelname": "WARNING",
                    "msg": f"{dropped} log lines were dropped",
                    "dropped": dropped,
                }
                self.write_lines([self.format(logging.makeLogRecord(facts))])

    def write_lines(self, lines: list[str]) -> None:
        # A reader that is gone for good is no reason to fail.
        with suppress(OSError):
            try:
                descriptor = self.stream.fileno()
            except OSError:
                self.stream.write("".join(f"{line}\n" for line in lines))
                return
            part = b""
            for line in lines:
                encoded = f"{line}\n".encode(errors="backslashreplace")
                # Several workers may share a pipe, which mixes longer writes.
                if part and len(part) + len(encoded) > select.PIPE_BUF:
                    write(descriptor, part)
                    part = b""
                part += encoded
            write(descriptor, part)

    def flush(self) -> None:
        """Nothing is held back."""


def write(descriptor: int, rest: bytes) -> None:
    """Past the stream: a thread that waits in its lock for a reader that stalls would
    keep the interpreter from ending.
    """
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
