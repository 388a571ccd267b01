"""A separate thread writes the lines, and the event loop never waits for it."""

import asyncio
import fcntl
import gc
import json
import logging
import os
import re
import select
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO
from weakref import WeakSet, ref

import onloop.logging
import pytest
import structlog
from onloop.logging import Formatter, QueueHandler, dropped_lines, queue
from onloop.logging.queue import stopping

logger = logging.getLogger("queue")


class Pipe:
    """A reader of the log that reads only when asked to."""

    def __init__(self) -> None:
        self.reading, writing = os.pipe()
        self.stream: TextIO = os.fdopen(writing, "w")

    def read(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.read_text().splitlines()]

    def read_text(self) -> str:
        """Everything, once the writer has closed its end."""
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
        return text

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
    with suppress(OSError):
        pipe.stream.close()


def test_stalled_reader_does_not_block_logging(pipe: Pipe) -> None:
    pipe.handler.start()
    start = time.perf_counter()
    for number in range(5000):
        logger.info("line %d", number)
    # A pipe holds 64 KiB, a tenth of this: without the queue, this would hang.
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


def test_failing_formatter_does_not_fail_the_caller(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    pipe.handler.setFormatter(logging.Formatter("%(missing)s"))
    pipe.handler.start()
    logger.info("lost")
    pipe.handler.setFormatter(Formatter("json", "tests"))
    logger.info("kept")
    assert [line["message"] for line in pipe.read()] == ["kept"]


def test_lines_beyond_the_capacity_are_dropped_and_counted(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "_handlers", WeakSet([pipe.handler]))
    pipe.handler.capacity = 1000
    pipe.handler.start()
    for number in range(9000):
        logger.info("line %d", number)
    assert len(pipe.handler.waiting) <= 1000
    lines = pipe.read()
    dropped = [line["dropped"] for line in lines if "dropped" in line]
    assert sum(dropped) > 0
    assert len(lines) - len(dropped) + sum(dropped) == 9000
    assert dropped_lines() == sum(dropped)
    assert {line["level"] for line in lines if "dropped" in line} == {"warning"}


def test_lines_beyond_the_bytes_are_dropped_and_counted(pipe: Pipe) -> None:
    pipe.handler.max_bytes = 2**20
    pipe.handler.start()
    for number in range(900):
        logger.info("\U0001f600" * 1000, extra={"number": number, "list": [number]})
    waiting: Any = pipe.handler.waiting
    # Four bytes for each character, in addition to what the pipe holds.
    assert sum(len(entry.message) * 4 for entry in waiting) < 2**20 * 1.2
    lines = pipe.read()
    dropped = [line["dropped"] for line in lines if "dropped" in line]
    assert sum(dropped) > 300
    assert len(lines) - len(dropped) + sum(dropped) == 900
    assert pipe.handler.put_bytes == pipe.handler.taken_bytes > 0


def make_record(message: str, *args: object, **kwargs: Any) -> logging.LogRecord:
    kwargs.setdefault("exc_info", None)
    return logger.makeRecord("queue", 20, "", 0, message, args, **kwargs)


class Body:
    """Bytes that can be weakly referenced."""


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_waiting_exception_keeps_nothing_that_its_frames_hold(
    pipe: Pipe, log_format: str
) -> None:
    def view() -> None:
        body = Body()
        bodies.append(ref(body))
        raise ValueError("no use")

    bodies: list[ref[Body]] = []
    pipe.handler.setFormatter(Formatter(log_format, "tests"))
    pipe.handler.flush_interval = 60
    pipe.handler.start()
    try:
        view()
    except ValueError:
        # Bypass pytest, which keeps each record.
        pipe.handler.handle(make_record("failed", exc_info=sys.exc_info()))
    gc.collect()
    assert len(pipe.handler.waiting) == 1
    assert [body() for body in bodies] == [None]
    assert "no use" in pipe.read_text()


def test_exception_that_raises_another_does_not_end_the_thread(pipe: Pipe) -> None:
    class BrokenError(Exception):
        def __str__(self) -> str:
            raise SystemExit

    pipe.handler.start()
    try:
        raise BrokenError
    except BrokenError as error:
        pipe.handler.handle(make_record("failed", exc_info=sys.exc_info()))
        pipe.handler.handle(make_record("failed: %s", error, extra={"error": error}))
    logger.info("good")
    lines = pipe.read()
    assert lines[0]["exception"].startswith("<BrokenError that cannot be shown")
    assert lines[-1]["message"] == "good"


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


WRITER = """if True:
    import logging, os, sys
    from onloop.logging import Formatter, QueueHandler
    loggers = []
    for descriptor in sys.argv[2:]:
        for log_format in ("text", "logfmt", "json"):
            handler = QueueHandler()
            handler.setStream(os.fdopen(os.dup(int(descriptor)), "w"))
            handler.setFormatter(Formatter(log_format, sys.argv[1]))
            handler.start()
            logger = logging.Logger(log_format)
            logger.addHandler(handler)
            loggers.append(logger)
    def fail(depth):
        if depth:
            fail(depth - 1)
        raise ValueError("x" * 5000)
    for number in range(10):
        for logger in loggers:
            logger.info("m" * 48_000, extra={"path": "\\1" * 48_000})
            try:
                fail(2)
            except ValueError:
                logger.exception("failed")
    for logger in loggers:
        logger.handlers[0].stop(60, 60)
"""


def test_lines_of_several_processes_stay_whole(tmp_path: Path) -> None:
    """In every format at once, in one pipe and in one file."""
    reading, writing = os.pipe()
    with (tmp_path / "log").open("w+") as file:
        descriptors = (writing, file.fileno())
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(turn), *map(str, descriptors)],
                pass_fds=descriptors,
            )
            for turn in range(2)
        ]
        os.close(writing)
        piped = b""
        # Slowly: the pipe stays full.
        while part := os.read(reading, 3000):
            piped += part
        os.close(reading)
        assert [process.wait(30) for process in processes] == [0, 0]
        file.seek(0)
        for text in (piped.decode(), file.read()):
            assert_whole(text)


WAITER = """if True:
    import fcntl, logging, sys
    from onloop.logging import Formatter, QueueHandler
    first, second = (open(path, "a") for path in sys.argv[1:])
    fcntl.lockf(second, fcntl.LOCK_EX)
    print("locked", flush=True)
    sys.stdin.readline()
    handler = QueueHandler()
    handler.setStream(first)
    handler.setFormatter(Formatter("json", "other"))
    handler.handle(logging.LogRecord("name", logging.INFO, "", 0, "x", (), None))
    print("written", flush=True)
"""


def test_line_waits_where_the_system_reports_a_deadlock(tmp_path: Path) -> None:
    """Each process waits for a file that a thread of the other has locked."""
    first, second = tmp_path / "first", tmp_path / "second"
    with first.open("a") as mine, second.open("a") as other:
        writer = subprocess.Popen(
            [sys.executable, "-c", WAITER, str(first), str(second)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdin and writer.stdout
        assert writer.stdout.readline() == "locked\n"
        fcntl.lockf(mine, fcntl.LOCK_EX)
        thread = threading.Thread(target=fcntl.lockf, args=(other, fcntl.LOCK_EX))
        thread.start()
        waits = re.compile(rf"-> POSIX .* {os.getpid()} ").search
        while not waits(Path("/proc/locks").read_text()):
            time.sleep(0.001)
        writer.stdin.write("\n")
        writer.stdin.flush()
        assert not select.select([writer.stdout], [], [], 0.3)[0]
        fcntl.lockf(mine, fcntl.LOCK_UN)
        assert writer.communicate()[0] == "written\n"
        thread.join()
    assert json.loads(first.read_text())["message"] == "x"


LOGFMT = re.compile(r'timestamp=\S+( \w+=("([^"\\]|\\.)*"|[^\s"=]+))+').fullmatch


def assert_whole(text: str) -> None:
    lines = iter(text.splitlines())
    kinds: Counter[str] = Counter()
    for line in lines:
        kind = "json" if line[0] == "{" else line.partition("=")[0]
        if kind == "json":
            assert json.loads(line)["message"][0] in "mf"
        elif kind == "timestamp":
            assert LOGFMT(line)
        else:
            kind = "text"
            assert re.fullmatch(r"\S+ [A-Z]+ +text: \w[^\t]*\t\w+=.*", line)
            if "text: failed" in line:
                # Its traceback follows it, and nothing comes between.
                while not line.startswith("    ValueError"):
                    line = next(lines)
                    assert line.startswith("    ")
                assert line == f"    ValueError: {'x' * 5000}"
        kinds[kind] += 1
    assert kinds == {"json": 40, "timestamp": 40, "text": 40}


def test_child_that_is_forked_amid_a_write_writes_its_own_line(pipe: Pipe) -> None:
    pipe.handler.start()
    for number in range(1000):
        logger.info("line %d", number)
    written = 0
    while written != (written := pipe.handler.written) or not written:
        # Until the pipe is full, and the thread waits while it holds its locks.
        time.sleep(0.05)
    with warnings.catch_warnings():
        # Python warns that this process has threads.
        warnings.simplefilter("ignore")
        if (pid := os.fork()) == 0:
            logger.info("child")
            logging.shutdown()
            os._exit(0)
    lines = [line["message"] for line in pipe.read()]
    assert os.waitpid(pid, 0) == (pid, 0)
    lines.remove("child")
    assert lines == [f"line {number}" for number in range(1000)]


def test_reader_that_stalls_does_not_keep_the_server_from_stopping(
    pipe: Pipe,
) -> None:
    pipe.handler.start()
    for number in range(1000):
        logger.info("line %d", number)
    start = time.monotonic()
    for _ in stopping([pipe.handler], stall=0.2, timeout=60):
        time.sleep(0.01)
    assert time.monotonic() - start < 30
    # Neither it nor a line waits again.
    pipe.handler.close()
    logger.info("too late")
    messages = [line["message"] for line in pipe.read()]
    assert messages == [f"line {number}" for number in range(len(messages))]


def test_line_of_an_interrupted_server_does_not_wait_for_a_stalled_reader(
    pipe: Pipe,
) -> None:
    pipe.handler.start()
    for number in range(1000):
        logger.info("line %d", number)
    pipe.handler.server = SimpleNamespace(force_exit=True)
    thread = threading.Thread(target=logger.info, args=("last",), daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert "last" not in [line["message"] for line in pipe.read()]


def test_log_is_stopped_without_a_thread_of_the_executor(pipe: Pipe) -> None:
    async def stop() -> None:
        asyncio.get_running_loop().run_in_executor = None  # type: ignore[assignment]
        await onloop.logging.stop()

    pipe.handler.start()
    logger.info("line")
    with asyncio.Runner() as runner:
        runner.run(stop())
    assert pipe.handler.thread is None
    assert [line["message"] for line in pipe.read()] == ["line"]


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


async def test_caplog_sees_lines_of_structlog_and_of_the_standard_library(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        logging.getLogger("shop").info("Paid %s", "7 EUR", extra={"order": 7})
        structlog.get_logger("shop").info("Shipped")
    assert caplog.messages[0] == "Paid 7 EUR"
    assert caplog.records[0].args == ("7 EUR",)
    assert "Shipped" in caplog.messages[1]
