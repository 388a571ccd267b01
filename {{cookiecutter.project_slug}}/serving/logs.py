"""Log lines in three formats, from the standard library's API and from structlog's.

Nothing that a client sent can start a line or add a field: what is not printable is
escaped, and only the formatter writes a newline or, before the fields of `text`, a tab.

While the server runs, lines go through a queue and a thread of their own, so that a
reader of stderr that stalls does not stall the event loop.
"""

import json
import logging
import os
import re
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

import structlog
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from structlog.contextvars import get_contextvars
from structlog.processors import ExceptionRenderer
from structlog.stdlib import ProcessorFormatter
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict

OURS = frozenset(("timestamp", "level", "logger", "message", "service"))
# Objects, and colours for a terminal; not facts.
DROPPED = frozenset(("request", "color_message", "server_time"))
NOT_EXTRA = DROPPED | {
    *("message", "asctime", "_logger", "_name"),
    *vars(logging.makeLogRecord({})),
    # Of Python 3.12.
    "taskName",
}

bare = re.compile(r"[^\s\"=\\]+").fullmatch
not_key = re.compile(r"[^A-Za-z0-9_.-]").sub


class Captured(NamedTuple):
    """What a record meant where it was logged: nothing in it changes."""

    created: float
    level: str
    logger: str
    message: str
    fields: dict[str, Any]
    exc_info: Any


def capture(record: logging.LogRecord) -> Captured:
    """Arguments may change, and another thread has another context."""
    attributes = vars(record)
    exc_info = record.exc_info
    fields = get_contextvars()
    if "_logger" in attributes and isinstance(record.msg, dict):
        # Of structlog, by ProcessorFormatter.wrap_for_formatter().
        event = dict(record.msg)
        message = safe_str(event.pop("event", ""))
        exc_info = event.pop("exc_info", exc_info)
        fields.update(event)
    else:
        message = message_of(record)
        for key, value in attributes.items():
            if key not in NOT_EXTRA:
                fields[key] = value
    if record.stack_info:
        fields["stack"] = record.stack_info
    return Captured(
        *(record.created, record.levelname, record.name, message),
        *(frozen(fields), exc_info),
    )


def message_of(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001
        # The arguments do not fit, or cannot be shown.
        return f"{safe_str(record.msg)} {safe_str(record.args)}"


def frozen(fields: dict[str, Any]) -> dict[str, Any]:
    if PLAIN.issuperset(map(type, fields.values())):
        return fields
    return {key: freeze(value) for key, value in fields.items()}


def freeze(value: object, depth: int = 0) -> Any:
    if type(value) in PLAIN:
        return value
    if isinstance(value, float):
        return float(value)
    if isinstance(value, dict) and depth < 10:
        return {safe_str(k): freeze(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple) and depth < 10:
        return [freeze(item, depth + 1) for item in value]
    return safe_str(value)


def safe_str(value: object) -> str:
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001
        return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"


PLAIN = frozenset((str, int, float, bool, type(None)))


class Formatter(ProcessorFormatter):
    """log_format is text, logfmt or json."""

    def __init__(self, log_format: str, service: str) -> None:
        super().__init__(processors=[self.remove_processors_meta])
        self.render = RENDERERS[log_format]
        # Without the local variables of each frame: they hold secrets.
        self.exception = ExceptionRenderer(
            *([ExceptionDictTransformer(show_locals=False)] * (log_format == "json"))
        )
        self.service = service

    def format(self, record: logging.LogRecord) -> str:
        """Past ProcessorFormatter's, which copies each record and formats it twice."""
        return self.line(capture(record))

    def line(self, captured: Captured) -> str:
        try:
            return self.whole_line(captured)
        except Exception as error:  # noqa: BLE001
            # Such as a number of too many digits, or a key that is no string.
            fields = {"fields": f"cannot be shown: {safe_str(error)}"}
            return self.whole_line(captured._replace(fields=fields))

    def whole_line(self, captured: Captured) -> str:
        fields = captured.fields
        if captured.exc_info:
            event: EventDict = {"exc_info": captured.exc_info}
            try:
                fields = {**fields, **self.exception(None, "", event)}
            except Exception as error:  # noqa: BLE001
                fields = {**fields, "exception": safe_str(error)}
        seconds = int(captured.created)
        line = {
            "timestamp": f"{second(seconds)}.{int(captured.created % 1 * 1e6):06d}Z",
            "level": LEVELS.get(captured.level) or captured.level.lower(),
            "logger": captured.logger,
            "message": captured.message,
            "service": self.service,
        }
        for key, value in fields.items():
            if key in OURS:
                key += "_"
            elif not key.isidentifier():
                key = not_key("_", key)
            line[key] = value
        return self.render(line)


def formatter() -> Formatter:
    """Of the settings; for config/logging.json."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    try:
        return Formatter(settings.LOG_FORMAT, settings.SERVICE)
    except ImproperlyConfigured as error:
        sys.exit(f"{error}")


def configure_structlog() -> None:
    """Let structlog.get_logger() write through the standard library's loggers."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            exception_of_now,
            ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def start() -> None:
    """Called when the server starts."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, Handler):
            handler.start()


def stop(timeout: float = 5) -> None:
    """Called when the server stops; blocks until all is written."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, Handler):
            handler.stop(timeout)


class Handler(logging.StreamHandler[Any]):
    """Writes at once; between start() and stop() by a queue and a thread.

    When `capacity` lines wait, further ones are dropped and counted, and a line says
    how many when there is room again.
    """

    capacity = 10_000
    # Seconds for which lines are gathered and then written together.
    pause = 0.02

    def __init__(self) -> None:
        super().__init__()
        self.waiting: deque[Captured | str] = deque()
        self.dropped = 0
        self.thread: threading.Thread | None = None
        self.wake = threading.Event()
        self.stopping = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Called under the handler's lock, as Handler.handle() does."""
        try:
            if self.thread is None:
                self.put([self.format(record)])
            elif len(self.waiting) >= self.capacity:
                self.dropped += 1
            else:
                # Another formatter may look at what changes.
                ours = getattr(type(self.formatter), "format", 0) is Formatter.format
                self.waiting.append(capture(record) if ours else self.format(record))
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
        self.acquire()
        try:
            if thread.is_alive():
                # Nobody reads. Better to lose lines than to hang.
                self.setLevel(logging.CRITICAL + 1)
            else:
                self.thread = None
                self.write()
        finally:
            self.release()

    def close(self) -> None:
        # Called at exit, also after a second CONTROL-C, when no lifespan ends.
        self.stop(5)
        super().close()

    def run(self) -> None:
        while not self.stopping.is_set():
            self.wake.wait()
            self.stopping.wait(self.pause)
            self.wake.clear()
            self.write()

    def write(self) -> None:
        formatter: Any = self.formatter
        while self.waiting or self.dropped:
            batch = [self.waiting.popleft() for _ in range(min(len(self.waiting), 500))]
            self.put([w if isinstance(w, str) else formatter.line(w) for w in batch])
            if self.dropped:
                self.acquire()
                dropped, self.dropped = self.dropped, 0
                self.release()
                self.put([self.format(record_of_dropped(dropped))])

    def put(self, lines: list[str]) -> None:
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


def record_of_dropped(dropped: int) -> logging.LogRecord:
    message = f"{dropped} log lines were dropped"
    record = logging.LogRecord(__name__, logging.WARNING, "", 0, message, (), None)
    vars(record)["dropped"] = dropped
    return record


def exception_of_now(_: Any, __: str, event: EventDict) -> EventDict:
    # Later, in the thread that formats, True would mean another exception, or none.
    if event.get("exc_info") is True:
        event["exc_info"] = sys.exc_info()
    return event


@lru_cache(4)
def second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def text(line: EventDict) -> str:
    """A traceback follows its line, indented."""
    exception = str(line.pop("exception", ""))
    head = (
        f"{line.pop('timestamp')} {line.pop('level').upper():8} {line.pop('logger')}: "
        f"{printable(str(line.pop('message')))}\t{pairs(line)}"
    )
    if not exception:
        return head
    trace = [f"    {printable(part)}" for part in exception.splitlines()]
    return "\n".join([head, *trace])


def pairs(line: EventDict) -> str:
    """logfmt."""
    return " ".join([f"{key}={value_of(value)}" for key, value in line.items()])


def value_of(value: object) -> str:
    """A bare word, or a JSON string."""
    if isinstance(value, float):
        value = str(value)
    elif not isinstance(value, str):
        value = encode(value)
    if bare(value) and value.isprintable():
        return value
    return json.dumps(value, ensure_ascii=not value.isprintable())


def printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in text
    )


# Nothing frozen leads to itself.
strict = json.JSONEncoder(
    default=safe_str, allow_nan=False, check_circular=False
).encode


def encode(value: object) -> str:
    try:
        return strict(value)
    except ValueError:
        # JSON has no NaN and no infinity: they become strings.
        lenient = json.dumps(value, default=safe_str)
        return strict(json.loads(lenient, parse_constant=str))


RENDERERS: dict[str, Callable[[EventDict], str]] = {
    "text": text,
    "logfmt": pairs,
    "json": encode,
}
LEVELS = {name: name.lower() for name in logging.getLevelNamesMapping()}
