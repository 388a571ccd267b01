import json
import logging
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextvars import ContextVar
from functools import lru_cache
from itertools import islice
from traceback import TracebackException
from typing import Any, NamedTuple

from structlog.contextvars import get_contextvars
from structlog.processors import ExceptionRenderer
from structlog.stdlib import ProcessorFormatter
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, ExcInfo

# In characters, before escaping: the message and each field; all fields together, and a
# traceback.
MAX_FIELD = 8192
MAX_FIELDS = 32_768
# The number of values in all fields together, or in a traceback; the nesting depth.
MAX_VALUES = 1000
MAX_DEPTH = 10

CORE_FIELDS = frozenset(("timestamp", "level", "logger", "message", "service"))
# Objects and terminal colours that Django and uvicorn put on a record.
IGNORED = frozenset(("request", "color_message", "server_time"))
STANDARD_ATTRS = IGNORED | {
    *("message", "asctime", "_logger", "_name"),
    *vars(logging.LogRecord("", 0, "", 0, "", (), None)),
    # New in Python 3.12.
    "taskName",
}
# Types that need no copy.
IMMUTABLE = frozenset((str, int, float, bool, type(None)))
LEVELS = {name: name.lower() for name in logging.getLevelNamesMapping()}

is_bare_word = re.compile(r"[^\s\"=\\]+").fullmatch
_replace_in_key = re.compile(r"[^A-Za-z0-9_.-]").sub


_bound: ContextVar[dict[str, Any] | None] = ContextVar("onloop_fields", default=None)


def bind_fields(**fields: Any) -> None:
    """Add these fields to every line that is logged in this context from now on.

    They replace those of an earlier call, and take precedence over fields of the line,
    of a filter and of structlog's context variables.
    """
    _bound.set(fields)


def bound_fields() -> dict[str, Any]:
    return _bound.get() or {}


def log_fields(
    logger: logging.Logger, level: int, message: str, fields: Mapping[str, Any]
) -> None:
    """Like ``logger.log(level, message, extra=fields)``, but faster.

    The record has the caller's file, but neither its line number nor its function,
    which take the logging module microseconds to find.
    """
    if logger.isEnabledFor(level):
        path = sys._getframe(1).f_code.co_filename
        record = logger.makeRecord(logger.name, level, path, 0, message, (), None)
        vars(record).update(fields)
        logger.handle(record)


class Snapshot(NamedTuple):
    """An immutable snapshot of a record, taken in the logging thread and context."""

    created: float
    level: str
    logger: str
    message: str
    fields: dict[str, Any]
    exception: Any
    # Approximate, in bytes.
    size: int


class Freezer:
    """Copies values that may change, up to the limits of a line."""

    def __init__(self) -> None:
        self.values = MAX_VALUES
        self.characters = MAX_FIELDS
        # The approximate size of the copies, in bytes.
        self.size = 0

    def freeze(self, value: Any, depth: int = 0) -> Any:
        self.values -= 1
        self.size += 100
        # Not isinstance(), which evaluates a lazy object.
        kind = type(value)
        if kind in IMMUTABLE and kind is not str:
            return value
        try:
            if issubclass(kind, float):
                return float(value)
            if not issubclass(kind, dict | list | tuple | set | frozenset):
                return self.text(value)
            if depth > MAX_DEPTH:
                return f"<{kind.__name__} that is nested too deeply>"
            if issubclass(kind, dict):
                return self.items(value, depth)
            values = [self.freeze(item, depth + 1) for item in self.first(value)]
            if (more := len(value) - len(values)) > 0:
                values.append(f"... [{more} more]")
            return values
        except BaseException as error:  # noqa: BLE001
            return cannot_be_shown(value, error)

    def items(self, value: dict[Any, Any], depth: int) -> dict[str, Any]:
        items = [
            (self.text(key), self.freeze(item, depth + 1))
            for key, item in self.first(value.items())
        ]
        if (more := len(value) - len(items)) > 0:
            items.append(("...", f"[{more} more]"))
        return dict(items)

    def first(self, values: Collection[Any]) -> Iterator[Any]:
        # list() is one call, during which no other thread can change a dict.
        for value in list(islice(values, max(self.values, 0))):
            if self.values <= 0 or self.characters <= 0:
                break
            yield value

    def text(self, value: object) -> str:
        text = cut(safe_str(value), min(MAX_FIELD, max(self.characters, 0)))
        self.characters -= len(text)
        self.size += sys.getsizeof(text)
        return text


def freeze_fields(fields: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The fields as they are now, and their approximate size in bytes."""
    size = 0
    for value in fields.values():
        kind = type(value)
        if kind is str:
            size += len(value)
        elif kind not in IMMUTABLE:
            break
    else:
        # A character takes at most four bytes; in a short line it counts as one.
        if size < MAX_FIELD:
            return fields, 4 * size if size > 500 else size
    freezer = Freezer()
    return freezer.freeze(fields), freezer.size


def message_of(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except BaseException:  # noqa: BLE001
        # The arguments do not match the message, or cannot be converted.
        return f"{safe_str(record.msg)} {safe_str(record.args)}"


def safe_str(value: object) -> str:
    try:
        return str(value)
    except BaseException as error:  # noqa: BLE001
        return cannot_be_shown(value, error)


def cannot_be_shown(value: object, error: BaseException) -> str:
    return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"


def cut(text: str, length: int = MAX_FIELD) -> str:
    more = len(text) - length
    return text if more <= 0 else f"{text[:length]}... [{more} more characters]"


# Local variables may contain secrets.
_structure = ExceptionDictTransformer(show_locals=False)


# These return an exception as it is kept until its line is formatted, and its
# approximate size in bytes. Frames would keep the request and its body in memory.
def structure(exc_info: ExcInfo) -> tuple[Any, int]:
    try:
        exception = _structure(exc_info)
    except BaseException as error:  # noqa: BLE001
        return cannot_be_shown(exc_info[1], error), 100
    size = len(repr(exception))
    if size <= MAX_FIELDS:
        return exception, size
    freezer = Freezer()
    return freezer.freeze(exception), freezer.size


def summarize(exc_info: ExcInfo) -> tuple[TracebackException | str, int]:
    # The thread that formats the line reads the source lines.
    exception = TracebackException(*exc_info, lookup_lines=False, compact=True)
    frames = characters = 0
    chain = [exception]
    while chain:
        link = chain.pop()
        frames += len(link.stack)
        characters += sum(map(len, link.format_exception_only()))
        others = (link.__cause__, link.__context__, *(link.exceptions or ()))
        chain += filter(None, others)
    if characters > MAX_FIELDS:
        text = trace_of(exception)
        return text, len(text)
    return exception, characters + 250 * frames


def trace_of(exception: TracebackException) -> str:
    text = "".join(exception.format()).removesuffix("\n")
    more, half = len(text) - MAX_FIELDS, MAX_FIELDS // 2
    if more <= 0:
        return text
    return f"{text[:half]}... [{more} more characters] ...{text[-half:]}"


class Formatter(ProcessorFormatter):
    """Formats records of the standard library and of structlog as one line each.

    ``log_format`` is ``text``, ``logfmt`` or ``json``, and ``service`` a field of each
    line. A ``text`` line with an exception is followed by the traceback, indented.
    Raises KeyError for another format.
    """

    def __init__(self, log_format: str, service: str) -> None:
        super().__init__(processors=[self.remove_processors_meta])
        self.render = RENDERERS[log_format]
        self.exception = ExceptionRenderer(
            structure if log_format == "json" else summarize
        )
        self.service = service

    def format(self, record: logging.LogRecord) -> str:
        # ProcessorFormatter.format() copies each record and formats it twice.
        return self.format_snapshot(self.take_snapshot(record))

    def take_snapshot(self, record: logging.LogRecord) -> Snapshot:
        """Must be called where the line is logged, before its arguments can change."""
        attributes = vars(record)
        exc_info: Any = record.exc_info
        fields = get_contextvars()
        if bound := _bound.get():
            fields = {**bound, **fields}
        if "_logger" in attributes and isinstance(record.msg, dict):
            # From structlog, through ProcessorFormatter.wrap_for_formatter().
            event = dict(record.msg)
            message = safe_str(event.pop("event", ""))
            exc_info = event.pop("exc_info", exc_info)
            fields.update(event)
        else:
            message = message_of(record)
        # Filters and record factories add attributes to structlog's lines too.
        for key, value in attributes.items():
            if key not in STANDARD_ATTRS:
                fields[key] = value
        if record.stack_info:
            fields["stack"] = record.stack_info
        if bound:
            fields.update(bound)
        fields, size = freeze_fields(fields)
        if len(message) > 500:
            message = cut(message)
            size += sys.getsizeof(message)
        size += 1000
        exception = None
        if exc_info:
            shown = self.exception(None, "", {"exc_info": exc_info})
            exception, more = shown.get("exception", (None, 0))
            size += more
        return Snapshot(
            record.created,
            record.levelname,
            record.name,
            message,
            fields,
            exception,
            size,
        )

    def format_snapshot(self, snapshot: Snapshot) -> str:
        try:
            return self._line(snapshot)
        except Exception:  # noqa: BLE001
            # Such as a number with too many digits, or a key that is not a string.
            fields = {safe_str(k): showable(v) for k, v in snapshot.fields.items()}
            return self._line(snapshot._replace(fields=fields))

    def _line(self, snapshot: Snapshot) -> str:
        created = snapshot.created
        line = {
            "timestamp": f"{format_second(int(created))}.{int(created % 1 * 1e6):06d}Z",
            "level": LEVELS.get(snapshot.level) or snapshot.level.lower(),
            "logger": snapshot.logger,
            "message": snapshot.message,
            "service": self.service,
        }
        for key, value in snapshot.fields.items():
            if key in CORE_FIELDS:
                key += "_"
            elif not key.isidentifier():
                key = _replace_in_key("_", key)
            line[key] = value
        if (exception := snapshot.exception) is not None:
            if isinstance(exception, TracebackException):
                exception = trace_of(exception)
            line["exception"] = exception
        return self.render(line)


def showable(value: object) -> object:
    try:
        render_json(value)
    except Exception as error:  # noqa: BLE001
        return cannot_be_shown(value, error)
    return value


@lru_cache(4)
def format_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def render_text(line: EventDict) -> str:
    exception = str(line.pop("exception", ""))
    head = (
        f"{line.pop('timestamp')} {line.pop('level').upper():8} {line.pop('logger')}: "
        f"{printable(str(line.pop('message')))}\t{render_logfmt(line)}"
    )
    if not exception:
        return head
    trace = [f"    {printable(part)}" for part in exception.splitlines()]
    return "\n".join([head, *trace])


def render_logfmt(line: EventDict) -> str:
    return " ".join([f"{key}={logfmt_value(value)}" for key, value in line.items()])


def logfmt_value(value: object) -> str:
    """A bare word, or a JSON string."""
    if isinstance(value, float):
        value = str(value)
    elif not isinstance(value, str):
        value = render_json(value)
    if is_bare_word(value) and value.isprintable():
        return value
    return json.dumps(value, ensure_ascii=not value.isprintable())


def printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in text
    )


# Frozen values contain no cycles.
_encode = json.JSONEncoder(
    default=safe_str, allow_nan=False, check_circular=False
).encode


def render_json(value: object) -> str:
    try:
        return _encode(value)
    except ValueError:
        # JSON has no NaN and no infinity: they become strings.
        lenient = json.dumps(value, default=safe_str)
        return _encode(json.loads(lenient, parse_constant=str))


RENDERERS: dict[str, Callable[[EventDict], str]] = {
    "text": render_text,
    "logfmt": render_logfmt,
    "json": render_json,
}
