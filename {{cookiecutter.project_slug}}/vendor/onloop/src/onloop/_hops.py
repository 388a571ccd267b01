"""Descriptions of thread hops: what is called, and from which line."""

import os
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache, partial, wraps
from inspect import unwrap
from types import FrameType
from typing import Any

from asgiref.sync import AsyncToSync, SyncToAsync

# These packages run tasks and threads: frames outside of them did not cause the hop.
RUNNERS = {"asyncio", "concurrent", "threading"}
PACKAGES, CURRENT = f"{os.sep}site-packages{os.sep}", f"{os.getcwd()}{os.sep}"
CALLS = [unwrap(cls.__call__).__code__ for cls in (SyncToAsync, AsyncToSync)]


def what_is_called(wrapper: Any) -> str:
    """The dotted name of the function that a SyncToAsync or an AsyncToSync calls."""
    named = wrapper
    # A SyncToAsync copies the names of its function; finding it by layers() is slow.
    if "__qualname__" not in vars(wrapper):
        *_, called = layers(wrapper)
        named = called if hasattr(called, "__qualname__") else type(called)
    # All views of View.as_view() have one name.
    named = getattr(named, "view_class", named)
    what = f"{named.__module__}.{named.__qualname__}".removeprefix("builtins.")
    return f"async_to_sync({what})" if isinstance(wrapper, AsyncToSync) else what


def layers(call: Any) -> Iterator[Any]:
    """The wrappers of a call, from the outermost to the function itself."""
    while call is not None:
        yield call
        if isinstance(call, AsyncToSync):
            call = call.awaitable
        elif isinstance(call, SyncToAsync | partial):
            call = call.func
        elif hasattr(call, "inlined_steps"):
            call = call.inlined_steps[0][0]
        else:
            call = getattr(call, "__wrapped__", None)


def line_of(frame: FrameType) -> str:
    return _line(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


@lru_cache(1000)
def _line(file: str, number: int, function: str) -> str:
    path = file.rpartition(PACKAGES)[2].removeprefix(CURRENT)
    return f"{path}:{number} in {function}"


def watch(on_hop: Callable[[str, str], None]) -> None:
    """Call ``on_hop(what, where)`` for each thread hop, in the context of the call."""

    def tell(*_: object) -> None:
        frame: Any = sys._getframe(1)
        where = find_line(frame.f_back) or "the start of a task"
        on_hop(what_is_called(frame.f_locals["self"]), where)

    # Python 3.11 has none, and other tools may have taken the ids reserved for nobody.
    monitoring: Any = getattr(sys, "monitoring", None)
    free = [tool for tool in (4, 3) if monitoring and not monitoring.get_tool(tool)]
    if not free:
        for cls in (SyncToAsync, AsyncToSync):
            is_async = cls is SyncToAsync
            cls.__call__ = preceded(cls.__call__, tell, is_async)  # type: ignore[method-assign]
        return
    monitoring.use_tool_id(free[0], "onloop")
    monitoring.register_callback(free[0], monitoring.events.PY_START, tell)
    for code in CALLS:
        monitoring.set_local_events(free[0], code, monitoring.events.PY_START)


def preceded(call: Any, before: Callable[[Any], None], is_async: bool) -> Any:
    """A ``__call__`` with ``before(self)`` called first."""

    @wraps(call)
    async def async_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        before(self)
        return await call(self, *args, **kwargs)

    @wraps(call)
    def sync_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        before(self)
        return call(self, *args, **kwargs)

    return async_call if is_async else sync_call


def find_line(frame: FrameType | None) -> str:
    """The calling line in the project or a package, else in Django or onloop."""
    line = ""
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        package = module.partition(".")[0]
        if package in RUNNERS:
            break
        # New Relic wraps the methods of asgiref.
        if package not in {"django", "onloop", "newrelic"}:
            return line_of(frame)
        line = line or line_of(frame)
        if package == "onloop" or module.startswith("django.core.handlers."):
            # Frames further out did not cause the hop.
            break
        frame = frame.f_back
    return line
