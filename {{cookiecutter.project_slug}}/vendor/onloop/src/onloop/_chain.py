"""What can be said about settings.MIDDLEWARE without serving a request."""

from inspect import iscoroutinefunction
from typing import Any, NamedTuple

from django.conf import settings
from django.utils.deprecation import MiddlewareMixin
from django.utils.module_loading import import_string

from onloop import _compat

ON_THE_LOOP, INLINED, IN_A_THREAD = "on the loop", "inlined", "in a thread"


class MiddlewareInfo(NamedTuple):
    path: str
    middleware: Any = None
    # Why it cannot be imported. If set, nothing else is known.
    error: Exception | None = None
    # Whether Django calls it as a coroutine function.
    is_async: bool = True
    execution: str = IN_A_THREAD
    # The hooks of an asynchronous middleware that run in a thread all the same.
    thread_hooks: tuple[str, ...] = ()

    @property
    def cls(self) -> Any:
        """The middleware if it is a class, otherwise ``object``, which has no hooks."""
        return self.middleware if isinstance(self.middleware, type) else object


def inspect_chain() -> list[MiddlewareInfo]:
    """The middlewares of settings.MIDDLEWARE, outermost first."""
    chain: list[MiddlewareInfo] = []
    is_async = True
    # From the view outwards, as BaseHandler.load_middleware() does.
    for path in reversed(settings.MIDDLEWARE):
        try:
            middleware = import_string(path)
        except Exception as error:  # noqa: BLE001
            chain.append(MiddlewareInfo(path, error=error))
            continue
        can_sync = getattr(middleware, "sync_capable", True)
        can_async = getattr(middleware, "async_capable", False)
        is_async = can_async and (is_async or not can_sync)
        info = MiddlewareInfo(path, middleware, None, is_async)
        if is_async and is_inlined(info.cls):
            info = info._replace(execution=INLINED)
        elif is_async:
            hooks = thread_hooks(info.cls)
            execution = IN_A_THREAD if hooks else ON_THE_LOOP
            info = info._replace(execution=execution, thread_hooks=hooks)
        chain.append(info)
    return chain[::-1]


def is_inlined(cls: Any) -> bool:
    if _compat.PROBLEM:
        # Django's own handler serves.
        return False
    from onloop.inlining import hooks_of

    return hooks_of(cls) is not None


def thread_hooks(cls: Any) -> tuple[str, ...]:
    hooks = [hook for hook in (*mixin_hooks(cls), "process_view") if hasattr(cls, hook)]
    return tuple(hook for hook in hooks if not iscoroutinefunction(getattr(cls, hook)))


def is_called_by_mixin(cls: Any) -> bool:
    """Whether MiddlewareMixin calls its hooks."""
    return issubclass(cls, MiddlewareMixin) and all(
        getattr(cls, name, None) is getattr(MiddlewareMixin, name, None)
        for name in ("__call__", "__acall__")
    )


def mixin_hooks(cls: Any) -> list[str]:
    """The hooks that MiddlewareMixin calls."""
    hooks = ("process_request", "process_response") if is_called_by_mixin(cls) else ()
    return [hook for hook in hooks if hasattr(cls, hook)]
