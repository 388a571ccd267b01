import json
import logging
import math
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import structlog
from django.core.exceptions import SynchronousOnlyOperation
from django.utils.functional import SimpleLazyObject
from onloop.logging import Formatter, log_fields

NASTY = 'a\nb\r\tc\x1b[31m\x85\u2028 d="e" \\f=g \u00fc'


def record(message: str, **extra: Any) -> logging.LogRecord:
    made = logging.makeLogRecord(
        {"name": "shop", "levelno": 20, "levelname": "INFO", "msg": message}
    )
    vars(made).update(extra)
    return made


def parse_pairs(text: str) -> dict[str, Any]:
    pairs = re.findall(r'([^\s=]+)=("(?:[^"\\]|\\.)*"|[^\s"=\\]+)(?: |$)', text)
    assert " ".join(f"{key}={value}" for key, value in pairs) == text
    return {k: json.loads(v) if v.startswith('"') else v for k, v in pairs}


def parse_text(line: str) -> dict[str, Any]:
    match = re.fullmatch(r"(\S+) ([A-Z]+) +(\S+): ([^\t]*)\t(.*)", line)
    assert match
    timestamp, level, logger, message, pairs = match.groups()
    head = {"timestamp": timestamp, "level": level.lower(), "logger": logger}
    return head | {"message": message} | parse_pairs(pairs)


PARSERS = {"text": parse_text, "logfmt": parse_pairs, "json": json.loads}


@pytest.fixture(params=PARSERS)
def log_format(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def parse(log_format: str, made: logging.LogRecord) -> dict[str, Any]:
    line = Formatter(log_format, "tests").format(made)
    assert len(line.splitlines()) == 1
    fields: dict[str, Any] = PARSERS[log_format](line)
    return fields


def test_line_holds_the_core_fields(log_format: str) -> None:
    fields = parse(log_format, record("Paid %s", args=("7 EUR",)))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{6}Z", fields.pop("timestamp"))
    assert fields == {
        "level": "info",
        "logger": "shop",
        "message": "Paid 7 EUR",
        "service": "tests",
    }


def test_extra_becomes_fields(log_format: str) -> None:
    fields = parse(log_format, record("Paid", order=7, path="/a b", empty=""))
    assert str(fields["order"]) == "7"
    assert fields["path"] == "/a b"
    assert fields["empty"] == ""


def test_value_of_a_client_stays_one_value(log_format: str) -> None:
    assert parse(log_format, record("Paid", path=NASTY))["path"] == NASTY


def test_message_of_a_client_stays_one_message(log_format: str) -> None:
    fields = parse(log_format, record(NASTY))
    expected = NASTY
    if log_format == "text":
        expected = 'a\\nb\\r\\tc\\x1b[31m\\x85\\u2028 d="e" \\f=g \u00fc'
    assert fields["message"] == expected
    assert set(fields) == {"timestamp", "level", "logger", "message", "service"}


def test_extra_cannot_pose_as_a_core_field(log_format: str) -> None:
    fields = parse(log_format, record("Paid", service="other"))
    assert fields["service"] == "tests"
    assert fields["service_"] == "other"


def test_number_that_json_does_not_know_is_a_string() -> None:
    fields = parse("json", record("Measured", ratio=math.nan, most=[math.inf, 1.5]))
    assert fields["ratio"] == "NaN"
    assert fields["most"] == ["Infinity", 1.5]


@pytest.mark.parametrize("log_format", ["text", "logfmt"])
def test_number_is_a_bare_word(log_format: str) -> None:
    fields = parse(log_format, record("Measured", ratio=math.nan, half=0.5))
    assert (fields["ratio"], fields["half"]) == ("nan", "0.5")


@pytest.mark.parametrize("key", ["large", 1])
def test_field_that_cannot_be_shown_costs_no_other(log_format: str, key: Any) -> None:
    made = record("Paid", path="/")
    vars(made)[key] = 10**5000
    fields = parse(log_format, made)
    assert fields["message"] == "Paid"
    assert fields["path"] == "/"
    assert fields[str(key)] == "<int that cannot be shown: ValueError>"


class Broken:
    def __str__(self) -> str:
        raise GeneratorExit


def needs_a_thread() -> None:
    raise SynchronousOnlyOperation


@pytest.mark.parametrize(
    ("make", "note"),
    [
        # Not created here, because pytest would evaluate it.
        (
            partial(SimpleLazyObject, needs_a_thread),
            "<SimpleLazyObject that cannot be shown: SynchronousOnlyOperation>",
        ),
        (Broken, "<Broken that cannot be shown: GeneratorExit>"),
    ],
)
def test_value_that_cannot_be_evaluated_is_replaced_by_a_note(
    make: Callable[[], object], note: str
) -> None:
    value = make()
    fields = parse("json", record("Paid", value=value, nested=[value], good="good"))
    assert (fields["value"], fields["nested"], fields["good"]) == (note, [note], "good")
    made = record("Paid %s")
    made.args = (value,)
    assert parse("json", made)["message"].startswith("Paid %s ")


def test_dict_that_changes_meanwhile_costs_no_line() -> None:
    changing: dict[Any, Any] = {}

    class Key:
        def __str__(self) -> str:
            changing[len(changing)] = "new"
            return "key"

    changing[Key()] = "value"
    # As another thread may change it.
    fields = parse("json", record("Paid", changing=changing))
    assert fields["changing"]["key"] == "value"


def test_message_and_fields_are_cut_with_a_mark(log_format: str) -> None:
    extra = {"path": "/" * 48_000, "number": 7, "id": "abc"}
    fields = parse(log_format, record("m" * 10_000, **extra))
    assert fields["message"] == "m" * 8192 + "... [1808 more characters]"
    assert fields["path"] == "/" * 8192 + "... [39808 more characters]"
    assert (str(fields["number"]), fields["id"]) == ("7", "abc")


def test_all_fields_together_are_cut() -> None:
    extra = {f"field{number}": "x" * 8000 for number in range(50)}
    fields = parse("json", record("Paid", **extra))
    assert fields["field3"] == "x" * 8000
    assert re.fullmatch(r"x+\.\.\. \[\d+ more characters\]", fields["field4"])
    assert fields["..."] == "[45 more]"
    assert sum(map(len, fields.values())) < 40_000


def test_number_of_values_is_bounded() -> None:
    fields = parse("json", record("Paid", many=list(range(10**6)), last={"x": 1}))
    assert fields["many"][:3] == [0, 1, 2]
    assert fields["many"][-1] == "... [999002 more]"
    assert fields["..."] == "[1 more]"


def test_recursive_dict_takes_no_more_memory_than_others() -> None:
    loop: dict[str, Any] = {}
    loop.update(dict.fromkeys("abcde", loop))
    line = Formatter("json", "tests").format(record("Paid", loop=loop))
    assert len(line) < 100_000


def test_structlog_events_have_the_same_shape(
    log_format: str, caplog: pytest.LogCaptureFixture
) -> None:
    structlog.get_logger("shop").warning("Paid %s", "late", order=7)
    fields = parse(log_format, caplog.records[-1])
    assert fields["level"] == "warning"
    assert fields["logger"] == "shop"
    assert fields["message"] == "Paid late"
    assert str(fields["order"]) == "7"


def failure() -> logging.LogRecord:
    secret = "hunter2"
    try:
        raise ValueError(f"no\nuse{secret[:0]}")
    except ValueError:
        return record("Failed", exc_info=sys.exc_info())


def test_traceback_is_structured_in_json() -> None:
    line = Formatter("json", "tests").format(failure())
    [exception] = json.loads(line)["exception"]
    assert exception["exc_type"] == "ValueError"
    assert exception["frames"][-1]["name"] == "failure"
    assert "hunter2" not in line


def test_traceback_is_one_value_in_logfmt() -> None:
    [line] = Formatter("logfmt", "tests").format(failure()).splitlines()
    assert "ValueError: no\nuse" in parse_pairs(line)["exception"]


def test_traceback_is_indented_in_text() -> None:
    first, *rest = Formatter("text", "tests").format(failure()).splitlines()
    assert parse_text(first)["message"] == "Failed"
    assert rest[-1] == "    use"
    assert all(line.startswith("    ") for line in rest)


def raised(error: Exception) -> logging.LogRecord:
    try:
        raise error
    except type(error):
        return record("Failed", exc_info=sys.exc_info())


def test_exception_that_cannot_be_shown_costs_no_line(log_format: str) -> None:
    class BrokenError(Exception):
        __str__ = Broken.__str__

    line = Formatter(log_format, "tests").format(raised(BrokenError()))
    assert "Failed" in line
    assert "BrokenError" in line


def test_long_traceback_is_cut(log_format: str) -> None:
    try:
        raise ValueError("x" * 10**6)
    except ValueError as error:
        cause = error
    long = RuntimeError("last")
    long.__cause__ = cause
    line = Formatter(log_format, "tests").format(raised(long))
    assert "more characters]" in line
    assert "RuntimeError" in line
    assert "ValueError" in line
    assert len(line) < 50_000


def test_exc_info_without_an_exception_adds_nothing(log_format: str) -> None:
    for exc_info in (True, (None, None, None)):
        made = record("Fine", exc_info=exc_info)
        assert "exception" not in Formatter(log_format, "tests").format(made)


TRACED = """
import logging
import subprocess
import sys

make = logging.getLogRecordFactory()


def traced(*args, **kwargs):
    record = make(*args, **kwargs)
    record.otelTraceID = "4bf92f35"
    return record


logging.setLogRecordFactory(traced)

import structlog
from onloop.logging import Formatter, log_fields
from tests.onloop import settings  # configures structlog

for log_format in sys.argv[1:]:
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter(log_format, "tests"))
    logging.getLogger(log_format).handlers = [handler]
    logging.getLogger(log_format).warning("by logging")
    structlog.get_logger(log_format).warning("by structlog", order=7)
"""


def test_fields_of_a_tracer_that_came_before_the_formatter_are_on_each_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRACED, *PARSERS],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    lines = iter(done.stderr.splitlines())
    for parse_line in PARSERS.values():
        for by in ("logging", "structlog"):
            line = parse_line(next(lines))
            assert (line["message"], line["otelTraceID"]) == (f"by {by}", "4bf92f35")


def test_fields_are_logged_with_the_line_that_called(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger("shop")
    with caplog.at_level(logging.INFO, "shop"):
        log_fields(logger, logging.DEBUG, "too low", {"order": 6})
        log_fields(logger, logging.INFO, "100 %", {"order": 0})
        logger.info("100 %%", extra={"order": 0})
    ours, others = map(vars, caplog.records)
    kept = ("pathname", "levelname", "name", "order")
    assert [ours[key] for key in kept] == [others[key] for key in kept]
    assert ours["message"] == "100 %"
