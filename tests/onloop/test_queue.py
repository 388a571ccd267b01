"""Lines wait for a thread of their own, and the event loop never for the lines."""

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, TextIO

import pytest
import structlog
from onloop.logging import Formatter, QueueHandler

logger = logging.getLogger("queue")


class Pipe:
    """A reader of the log that reads only when asked to."""

    def __init__(self) -> None:
        self.reading, writing = os.pipe()
        self.stream: TextIO = os.fdopen(writing, "w")

    def read(self) -> list[dict[str, Any]]:
        """All, once the writer has closed its end."""
        text = ""

        def drain() -> None:
            nonlocal text
            with os.fdopen(self.reading) as reader:
                text = reader.read()

        thread = threading.Thread(target=drain)
        thread.start()
        self.handler.stop(10)
        self.stream.close()
        thread.join(10)
        return [json.loads(line) for line in text.splitlines()]

    handler: QueueHandler


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    handler = pipe.handler = QueueHandler()
    handler.setStream(pipe.stream)
    handler.setFormatter(Formatter("json", "tests"))
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    yield pipe
    logger.removeHandler(handler)


def test_stalled_reader_does_not_hold_up_who_logs(pipe: Pipe) -> None:
    pipe.handler.start()
    start = time.perf_counter()
    for number in range(5000):
        logger.info("line %d", number)
    # A pipe holds 64 KiB, a tenth of this: without the queue it would never end.
    assert time.perf_counter() - start < 5
    assert [line["message"] for line in pipe.read()] == [
        f"line {number}" for number in range(5000)
    ]


def test_another_formatter_formats_where_it_is_logged(pipe: Pipe) -> None:
    pipe.handler.setFormatter(
        logging.Formatter('{"thread": "%(threadName)s: %(msg)s"}')
    )
    pipe.handler.capacity = 1
    pipe.handler.flush_interval = 60
    pipe.handler.start()
    fields = ["before"]
    logger.info(fields)
    fields[0] = "after"
    logger.info("too many")
    assert [line["thread"] for line in pipe.read()] == [
        "MainThread: ['before']",
        "log: 1 log lines were dropped",
    ]


def test_subclass_of_the_formatter_formats_in_the_queue_too(pipe: Pipe) -> None:
    class Short(Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return json.dumps({"short": record.getMessage()})

    pipe.handler.setFormatter(Short("json", "tests"))
    pipe.handler.start()
    logger.info("Hello")
    assert pipe.read() == [{"short": "Hello"}]


def test_formatter_that_fails_does_not_fail_who_logs(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    pipe.handler.setFormatter(logging.Formatter("%(missing)s"))
    pipe.handler.start()
    logger.info("lost")
    pipe.handler.setFormatter(Formatter("json", "tests"))
    logger.info("kept")
    assert [line["message"] for line in pipe.read()] == ["kept"]


def test_lines_beyond_the_capacity_are_dropped_and_counted(pipe: Pipe) -> None:
    pipe.handler.capacity = 1000
    pipe.handler.start()
    for number in range(9000):
        logger.info("line %d", number)
    assert len(pipe.handler.waiting) <= 1000
    lines = pipe.read()
    dropped = [line["dropped"] for line in lines if "dropped" in line]
    assert sum(dropped) > 0
    assert len(lines) - len(dropped) + sum(dropped) == 9000
    assert {line["level"] for line in lines if "dropped" in line} == {"warning"}


def test_context_and_arguments_are_those_of_when_it_was_logged(pipe: Pipe) -> None:
    pipe.handler.start()
    basket = ["apple"]
    with structlog.contextvars.bound_contextvars(request_id="abc"):
        logger.info("basket %s", basket)
    basket.append("pear")
    [line] = pipe.read()
    assert line["message"] == "basket ['apple']"
    assert line["request_id"] == "abc"


@pytest.mark.parametrize("get_logger", [logging.getLogger, structlog.get_logger])
def test_exception_keeps_its_traceback(pipe: Pipe, get_logger: Any) -> None:
    pipe.handler.start()
    try:
        raise ValueError("no use")
    except ValueError:
        get_logger("queue").exception("failed")
    [line] = pipe.read()
    [exception] = line["exception"]
    assert exception["exc_type"] == "ValueError"
    assert exception["exc_value"] == "no use"


def test_arguments_that_do_not_fit_are_shown_beside_the_message(pipe: Pipe) -> None:
    record = logger.makeRecord("queue", 20, "", 0, "number %d", ("x",), None)
    pipe.handler.handle(record)
    [line] = pipe.read()
    assert line["message"] == "number %d ('x',)"


def test_value_that_cannot_be_shown_does_not_lose_the_line(pipe: Pipe) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no")

    pipe.handler.start()
    with structlog.contextvars.bound_contextvars(user=Broken()):
        for args, extra in (((), {"value": Broken()}), ((Broken(),), {})):
            record = logger.makeRecord(
                "queue", 20, "", 0, "bad", args, None, extra=extra
            )
            pipe.handler.handle(record)
    logger.info("good")
    lines = pipe.read()
    assert [line["message"][:4] for line in lines] == ["bad", "bad ", "good"]
    assert "Broken that cannot be shown: RuntimeError" in lines[0]["value"]


def test_extra_is_what_it_was_when_it_was_logged(pipe: Pipe) -> None:
    pipe.handler.start()
    basket = {"fruit": ["apple"]}
    logger.info("basket", extra={"basket": basket})
    basket["fruit"].append("pear")
    [line] = pipe.read()
    assert line["basket"] == {"fruit": ["apple"]}


def test_lines_of_several_writers_in_one_pipe_stay_whole(pipe: Pipe) -> None:
    other = QueueHandler()
    other.setStream(pipe.stream)
    other.setFormatter(Formatter("json", "other"))
    pipe.handler.start()
    other.start()
    for number in range(3000):
        record = logger.makeRecord("queue", 20, "", 0, "line %d", (number,), None)
        pipe.handler.handle(record)
        other.handle(record)
    text = b""
    while text.count(b"\n") < 6000:
        # Slowly: the pipe stays full.
        text += os.read(pipe.reading, 1000)
    other.stop(10)
    services = [json.loads(line)["service"] for line in text.splitlines()]
    assert services.count("tests") == services.count("other") == 3000


def test_line_after_the_end_of_the_queue_is_written_at_once(pipe: Pipe) -> None:
    pipe.handler.start()
    logger.info("before")
    pipe.handler.stop(10)
    logger.info("after")
    assert [line["message"] for line in pipe.read()] == ["before", "after"]


def test_reader_that_is_gone_is_no_error(pipe: Pipe) -> None:
    os.close(pipe.reading)
    pipe.handler.start()
    logger.info("into nothing")
    pipe.handler.stop(10)
    logger.info("into nothing")
    with suppress(BrokenPipeError):
        pipe.stream.close()


async def test_caplog_sees_lines_of_structlog_and_of_the_standard_library(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        logging.getLogger("shop").info("Paid %s", "7 EUR", extra={"order": 7})
        structlog.get_logger("shop").info("Shipped")
    assert caplog.messages[0] == "Paid 7 EUR"
    assert caplog.records[0].args == ("7 EUR",)
    assert "Shipped" in caplog.messages[1]
