"""Log lines in three formats, from the standard library's API and from structlog's.

Nothing that a client sent can start a line or add a field: what is not printable is
escaped, and only the formatter writes a newline or, before the fields of `text`, a tab.
"""

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any

import structlog
from structlog.processors import ExceptionRenderer
from structlog.stdlib import ProcessorFormatter
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor

_OURS = frozenset(("timestamp", "level", "logger", "message", "service"))
# Objects, and colours for a terminal; not facts.
_DROPPED = frozenset(("request", "color_message", "server_time"))
_NOT_EXTRA = _DROPPED | {"message", "asctime", *vars(logging.makeLogRecord({}))}
_BARE = re.compile(r"[^\s\"=\\]+")
_NOT_KEY = re.compile(r"[^A-Za-z0-9_.-]")


def formatter(log_format: str, service: str) -> logging.Formatter:
    """For the "()" of a LOGGING formatter; log_format is text, logfmt or json."""

    def fields(_: Any, __: str, event: EventDict) -> EventDict:
        record: logging.LogRecord = event.pop("_record")
        if not event.pop("_from_structlog"):
            event.update({k: v for k, v in vars(record).items() if k not in _NOT_EXTRA})
        when = datetime.fromtimestamp(record.created, UTC)
        line = {
            "timestamp": f"{when:%Y-%m-%dT%H:%M:%S.%f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": event.pop("event"),
            "service": service,
        }
        for key, value in {**structlog.contextvars.get_contextvars(), **event}.items():
            line[f"{key}_" if key in _OURS else _NOT_KEY.sub("_", key)] = value
        return line

    renderers: dict[str, list[Processor]] = {
        "text": [ExceptionRenderer(), _text],
        "logfmt": [ExceptionRenderer(), _logfmt],
        # Without the local variables of each frame: they hold secrets.
        "json": [ExceptionRenderer(ExceptionDictTransformer(show_locals=False)), _json],
    }
    return ProcessorFormatter(processors=[fields, *renderers[log_format]])


def configure_structlog() -> None:
    """Let structlog.get_logger() write through the standard library's loggers."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _json(_: Any, __: str, line: EventDict) -> str:
    return json.dumps(line, default=str)


def _logfmt(_: Any, __: str, line: EventDict) -> str:
    return _pairs(line)


def _text(_: Any, __: str, line: EventDict) -> str:
    """A traceback follows its line, indented."""
    exception = line.pop("exception", "")
    head = (
        f"{line.pop('timestamp')} {line.pop('level').upper():8} {line.pop('logger')}: "
        f"{_printable(str(line.pop('message')))}\t{_pairs(line)}"
    )
    trace = [f"    {_printable(part)}" for part in exception.splitlines()]
    return "\n".join([head, *trace])


def _pairs(line: EventDict) -> str:
    return " ".join(f"{key}={_value(value)}" for key, value in line.items())


def _value(value: object) -> str:
    """A bare word, or a JSON string."""
    if not isinstance(value, str):
        value = json.dumps(value, default=str)
    if _BARE.fullmatch(value) and value.isprintable():
        return value
    return json.dumps(value, ensure_ascii=not value.isprintable())


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in text
    )
