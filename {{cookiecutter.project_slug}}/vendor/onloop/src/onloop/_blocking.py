import linecache
import os
import re
import sys
from collections.abc import Generator
from pathlib import Path
from traceback import walk_stack

import blockbuster.blockbuster
import pytest
from blockbuster import BlockBuster, BlockBusterFunction

# These functions read files only for the first caller in a process.
ONCE_IN_A_PROCESS = (
    "<frozen importlib._bootstrap>:_find_and_load",
    "django/contrib/auth/password_validation.py:get_default_password_validators",
    "django/core/files/storage/handler.py:create_storage",
    "django/core/handlers/base.py:load_middleware",
    "django/forms/renderers.py:engine",
    "django/template/loaders/cached.py:get_template",
    "django/template/utils.py:__getitem__",
    "django/utils/translation/trans_real.py:check_for_language",
    "django/utils/translation/trans_real.py:translation",
    "mimetypes.py:init",
    "zoneinfo/_common.py:load_data",
    "zoneinfo/_tzpath.py:find_tzfile",
)
HARMLESS = (
    # The test client reads what it uploads; a server does not.
    "django/test/client.py:encode_file",
    # While a server runs, another thread writes.
    "onloop/logging/queue.py:write_lines",
    # It looks up the current directory.
    "structlog/tracebacks.py:extract",
)
LIBRARY = re.compile("(?<=/)(site-packages|vendor)/")


class BlockingCall(Exception):
    pass


class BlockingDetector:
    """A pytest plugin."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.found: list[BlockingCall] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        detector = BlockBuster()
        # blockbuster does not watch the name lookup before a connection is made.
        lookup = BlockBusterFunction(None, "socket.getaddrinfo")
        detector.functions["socket.getaddrinfo"] = lookup
        self.allow_log_file(detector.functions["io.TextIOWrapper.write"])
        self.allow_log_file(detector.functions["io.BufferedWriter.write"])
        # blockbuster compares the end of the path.
        may_block = [f"/{entry}" for entry in self.config.getini("may_block")]
        for entry in (*ONCE_IN_A_PROCESS, *HARMLESS, *may_block):
            path, _, function = entry.rpartition(":")
            for call in detector.functions.values():
                call.can_block_in(path, function)
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(blockbuster.blockbuster, "BlockingError", self.find)
            detector.activate()
            try:
                return (yield)
            finally:
                detector.deactivate()

    def allow_log_file(self, call: BlockBusterFunction) -> None:
        """Allow writing to pytest's log file, os.devnull without --log-file."""
        plugin = self.config.pluginmanager.get_plugin("logging-plugin")
        handler = getattr(plugin, "log_file_handler", None)
        log = getattr(handler, "baseFilename", os.devnull)
        may_block = call.can_block_predicate
        call.can_block_predicate = lambda file, *args: (
            may_block(file, *args) or getattr(file, "name", None) == log
        )

    def find(self, call: str) -> BlockingCall:
        """Make the error that blockbuster raises instead of calling the function."""
        # With the slashes that may_block has, on Windows too.
        root = f"{self.config.rootpath.as_posix()}/"
        caller = sys._getframe(2)
        for frame, _ in walk_stack(caller):
            path = frame.f_code.co_filename.replace(os.sep, "/")
            if path.startswith(root) and not LIBRARY.search(path, len(root)):
                break
        else:
            frame, path = caller, caller.f_code.co_filename.replace(os.sep, "/")
        line = linecache.getline(path, frame.f_lineno).strip()
        file = re.sub(".*site-packages/", "", path.removeprefix(root))
        function = frame.f_code.co_name
        settings = self.config.inipath or Path("pyproject.toml")
        found = BlockingCall(
            f"{call} blocks the event loop, and so every request, at "
            f"{file}:{frame.f_lineno} in {function}(): `{line}`. Await an asynchronous "
            "function instead, or sync_to_async() of asgiref.sync. To allow it, add "
            f'"{file}:{function}" to may_block in {settings.name}.'
        )
        self.found.append(found)
        return found

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Generator[None, object, object]:
        __tracebackhide__ = True
        try:
            result = yield
            if self.found:
                # It was caught, as Django does in order to answer with 500.
                raise self.found[0]
            return result
        except Exception as error:
            if self.found and error not in self.found:
                raise self.found[0] from error
            raise
        finally:
            self.found.clear()

    # Asynchronous fixtures can block, too.
    pytest_runtest_setup = pytest_runtest_teardown = pytest_runtest_call
