"""A call that blocks the event loop fails the test in which it happens."""

import os
import sys
import traceback
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import blockbuster.blockbuster
import pytest
from blockbuster import BlockBuster, BlockBusterFunction, BlockingError

ROOT = Path(__file__).parent.parent
# The end of a file's path, and the function of it that may block.
MAY_BLOCK = [
    # Once in a process, before the first request.
    ("django/core/handlers/base.py", "load_middleware"),
    ("django/template/utils.py", "__getitem__"),
    ("django/template/utils.py", "get_app_template_dirs"),
    # Once for each template.
    ("django/template/loaders/filesystem.py", "get_contents"),
    # In a thread of its own while a server runs.
    ("serving/logs.py", "put"),
]
blocked: list["Blocked"] = []


class Blocked(BlockingError):
    def __init__(self, call: str) -> None:
        where = innermost_of_ours(traceback.extract_stack(sys._getframe(2)))
        file = Path(where.filename).relative_to(ROOT).as_posix()
        Exception.__init__(
            self,
            f"{call} blocks the event loop, and so every request, at "
            f"{file}:{where.lineno} in {where.name}(): `{where.line}`. Await an "
            "asynchronous function instead, or sync_to_async() of asgiref.sync. To "
            f'allow it, add ("{file}", "{where.name}") to MAY_BLOCK in '
            "tests/blocking.py.",
        )
        blocked.append(self)


def innermost_of_ours(stack: traceback.StackSummary) -> traceback.FrameSummary:
    for frame in reversed(stack):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and "site-packages" not in path.parts:
            return frame
    return traceback.FrameSummary(str(ROOT / "?"), 0, "?", line="?")


def allow_null_device(function: BlockBusterFunction) -> None:
    """Where pytest's own log handler writes."""
    known = function.can_block_predicate

    def predicate(file: Any, *args: Any) -> bool:
        return known(file, *args) or getattr(file, "name", None) == os.devnull

    function.can_block_predicate = predicate


@pytest.fixture(scope="session", autouse=True)
def nothing_blocks() -> Iterator[None]:
    detector = BlockBuster()
    # Before a connection is made.
    lookup = BlockBusterFunction(None, "socket.getaddrinfo")
    detector.functions["socket.getaddrinfo"] = lookup
    for name in ("io.TextIOWrapper.write", "io.BufferedWriter.write"):
        allow_null_device(detector.functions[name])
    for function in detector.functions.values():
        for file, name in MAY_BLOCK:
            function.can_block_in(file, name)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(blockbuster.blockbuster, "BlockingError", Blocked)
        detector.activate()
        yield
        detector.deactivate()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Generator[None, object, object]:
    blocked.clear()
    result = yield
    if blocked:
        # Somebody caught it, as Django does to answer with 500.
        raise blocked[0]
    return result
