"""A call that blocks the event loop fails its test; async database tests are isolated.

pytest loads this wherever onloop is installed, so it imports neither Django nor
blockbuster unless the project uses Django.
"""

import os
import sys
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from onloop.measure import ThreadHop


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "may_block",
        'functions that may block the event loop, each as "path.py:function"',
        type="linelist",
    )


def pytest_configure(config: pytest.Config) -> None:
    for entry in config.getini("may_block"):
        path, _, function = entry.rpartition(":")
        # <module> and <lambda> are valid names here.
        if not path.endswith(".py") or not function.strip("<>").isidentifier():
            raise pytest.UsageError(
                f'may_block: "{entry}" is not of the form "path.py:function".'
            )


def pytest_report_header() -> str | None:
    if uses_django() and not find_spec("blockbuster"):
        return "onloop: blocking calls are not detected: blockbuster is not installed"
    return None


def pytest_sessionstart(session: pytest.Session) -> None:
    plugins = session.config.pluginmanager
    if uses_django():
        from onloop import _isolation

        plugins.register(_isolation)
        if find_spec("blockbuster"):
            from onloop._blocking import BlockingDetector

            plugins.register(BlockingDetector(session.config))


def uses_django() -> bool:
    if "DJANGO_SETTINGS_MODULE" in os.environ:
        return True
    conf = sys.modules.get("django.conf")
    return conf is not None and conf.settings.configured


@pytest.fixture
def thread_hops() -> "Callable[..., Awaitable[list[ThreadHop]]]":
    """``await thread_hops(path="/")`` serves a GET and lists its thread hops."""
    from onloop.measure import measure

    async def thread_hops(path: str = "/") -> "list[ThreadHop]":
        return (await measure(path)).thread_hops

    return thread_hops
