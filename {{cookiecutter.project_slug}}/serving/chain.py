"""How the middlewares will run, and how often a request leaves the loop for them.

Of a plain request: a GET of an asynchronous view, with nothing to save, redirect or
refuse, in a process that has served before. Nothing is run; the middlewares are
imported, and their source is read.
"""

import inspect
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.utils.deprecation import MiddlewareMixin
from django.utils.module_loading import import_string

from serving import inline, source

ON_THE_LOOP, INLINED, IN_A_THREAD = "on the loop", "inlined", "in a thread"


@dataclass(frozen=True)
class Link:
    """One of the chain; without a middleware if it cannot be imported."""

    path: str
    middleware: Any = None
    error: Exception | None = None
    # Whether Django calls it as a coroutine function.
    asynchronous: bool = True
    request: int = 0
    view: int = 0
    response: int = 0

    @property
    def hops(self) -> int:
        return self.request + self.view + self.response

    @property
    def runs(self) -> str:
        if self.hops or not self.asynchronous:
            return IN_A_THREAD
        return ON_THE_LOOP if inline.hops(self.middleware) is None else INLINED

    @property
    def cls(self) -> Any:
        """The middleware, if it is a class; else one that has nothing."""
        return self.middleware if isinstance(self.middleware, type) else object


def read() -> list[Link]:
    """The links of settings.MIDDLEWARE, outermost first."""
    links: list[Link] = []
    inner_asynchronous = True
    # From the view outwards, as BaseHandler.load_middleware() does.
    for path in reversed(settings.MIDDLEWARE):
        try:
            middleware = import_string(path)
        except Exception as error:  # noqa: BLE001
            links.append(Link(path, error=error))
            continue
        asynchronous = getattr(middleware, "async_capable", False)
        if not inner_asynchronous and getattr(middleware, "sync_capable", True):
            asynchronous = False
        if asynchronous:
            request, response = own_hops(middleware)
        else:
            # Synchronous neighbours share a thread, and so one hop.
            request, response = int(inner_asynchronous), 0
        view = view_hops(middleware)
        links.append(
            Link(path, middleware, None, asynchronous, request, view, response)
        )
        inner_asynchronous = asynchronous
    return links[::-1]


def summary(links: list[Link]) -> str:
    stay = sum(link.runs != IN_A_THREAD for link in links)
    hops = sum(link.hops for link in links)
    return f"{stay} of {len(links)} middlewares stay on the event loop" + (
        f"; each request pays {times(hops)}: manage.py middleware shows where."
        if hops
        else "."
    )


def times(hops: int) -> str:
    return "1 thread hop" if hops == 1 else f"{hops} thread hops"


def own_hops(middleware: Any) -> tuple[int, int]:
    """Before and after the view, where Django runs it asynchronously."""
    if (inlined := inline.hops(middleware)) is not None:
        return inlined[0], inlined[2]
    if uses_mixin_hooks(middleware):
        return (
            int(hasattr(middleware, "process_request")),
            int(hasattr(middleware, "process_response")),
        )
    return source.hops(middleware)


def uses_mixin_hooks(middleware: Any) -> bool:
    """Whether MiddlewareMixin takes its process_request and so on to a thread."""
    return (
        isinstance(middleware, type)
        and issubclass(middleware, MiddlewareMixin)
        and middleware.__call__ is MiddlewareMixin.__call__
        and inline.hops_in_mixin(middleware)
    )


def view_hops(middleware: Any) -> int:
    if (inlined := inline.hops(middleware)) is not None:
        return inlined[1]
    if not isinstance(middleware, type):
        return int(source.sets_hook(middleware, "process_view"))
    hook = getattr(middleware, "process_view", None)
    return int(hook is not None and not inspect.iscoroutinefunction(hook))
