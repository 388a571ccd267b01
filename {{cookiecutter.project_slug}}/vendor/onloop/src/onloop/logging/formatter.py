import json
import logging
import re
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from structlog.contextvars import get_contextvars
from structlog.processors import ExceptionRenderer
from structlog.stdlib import ProcessorFormatter
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict

CORE_FIELDS = frozenset(("timestamp", "level", "logger", "message", "service"))
# Objects, and colours for a terminal; not facts.
IGNORED = frozenset(("request", "color_message", "server_time"))
STANDARD_ATTRS = IGNORED | {
    *("message", "asctime", "_logger", "_name"),
    *vars(logging.LogRecord("", 0, "", 0, "", (), None)),
    # Of Python 3.12.
    "taskName",
}
# What needs no copy.
IMMUTABLE = frozenset((str, int, float, bool, type(None)))
LEVELS = {name: name.lower() for name in logging.getLevelNamesMapping()}

is_bare_word = re.compile(r"[^\s\"=\\]+").fullmatch
_replace_in_key = re.compile(r"[^A-Za-z0-9_.-]").sub


class Snapshot(NamedTuple):
    """An immutable snapshot of a record, taken in the logging thread and context."""

    created: float
    level: str
    logger: str
    message: str
    fields: dict[str, Any]
    exc_info: Any


def take_snapshot(record: logging.LogRecord) -> Snapshot:
    """Arguments may change, and another thread has another context."""
    attributes = vars(record)
    exc_info: Any = record.exc_info
    fields = get_contextvars()
    if "_logger" in attributes and isinstance(record.msg, dict):
        # Of structlog, by ProcessorFormatter.wrap_for_formatter().
        event = dict(record.msg)
        message = safe_str(event.pop("event", ""))
        exc_info = event.pop("exc_info", exc_info)
        fields.update(event)
    else:
        message = message_of(record)
    # Of structlog's lines too: filters and record factories put fields there.
    for key, value in attributes.items():
        if key not in STANDARD_ATTRS:
            fields[key] = value
    if exc_info is True:
        # Later, in the thread that formats, it would mean another exception, or none.
        exc_info = sys.exc_info()
    if record.stack_info:
        fields["stack"] = record.stack_info
    return Snapshot(
        record.created, record.levelname, record.name, message, frozen(fields), exc_info
    )


def message_of(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001
        # The arguments do not fit, or cannot be shown.
        return f"{safe_str(record.msg)} {safe_str(record.args)}"


def frozen(fields: dict[str, Any]) -> dict[str, Any]:
    if IMMUTABLE.issuperset(map(type, fields.values())):
        return fields
    return {key: freeze(value) for key, value in fields.items()}


def freeze(value: object, depth: int = 0) -> Any:
    if type(value) in IMMUTABLE:
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


class Formatter(ProcessorFormatter):
    """Formats records of the standard library and of structlog as one line each.

    ``log_format`` is ``text``, ``logfmt`` or ``json``, and ``service`` a field of each
    line. A ``text`` line with an exception is followed by the traceback, indented.
    Raises KeyError for another format.
    """

    def __init__(self, log_format: str, service: str) -> None:
        super().__init__(processors=[self.remove_processors_meta])
        self.render = RENDERERS[log_format]
        # Without the local variables of each frame: they hold secrets.
        self.exception = ExceptionRenderer(
            *([ExceptionDictTransformer(show_locals=False)] * (log_format == "json"))
        )
        self.service = service

    def format(self, record: logging.LogRecord) -> str:
        # ProcessorFormatter's own copies each record and formats it twice.
        return self.format_snapshot(take_snapshot(record))

    def format_snapshot(self, snapshot: Snapshot) -> str:
        try:
            return self._line(snapshot)
        except Exception as error:  # noqa: BLE001
            # Such as a number of too many digits, or a key that is no string.
            fields = {"fields": f"cannot be shown: {safe_str(error)}"}
            return self._line(snapshot._replace(fields=fields))

    def _line(self, snapshot: Snapshot) -> str:
        fields = snapshot.fields
        if snapshot.exc_info:
            event: EventDict = {"exc_info": snapshot.exc_info}
            try:
                fields = {**fields, **self.exception(None, "", event)}
            except Exception as error:  # noqa: BLE001
                fields = {**fields, "exception": safe_str(error)}
        created = snapshot.created
        line = {
            "timestamp": f"{format_second(int(created))}.{int(created % 1 * 1e6):06d}Z",
            "level": LEVELS.get(snapshot.level) or snapshot.level.lower(),
            "logger": snapshot.logger,
            "message": snapshot.message,
            "service": self.service,
        }
        for key, value in fields.items():
            if key in CORE_FIELDS:
                key += "_"
            elif not key.isidentifier():
                key = _replace_in_key("_", key)
            line[key] = value
        return self.render(line)


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


# Nothing frozen leads to itself.
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
