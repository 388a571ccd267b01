"""Mistakes in the middleware chain and the deployment, found without a request.

onloop's README says what each id means.
"""

from collections.abc import Iterator
from inspect import iscoroutinefunction
from types import CodeType, FunctionType

from asgiref.sync import markcoroutinefunction
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning

from onloop import _compat, _source
from onloop._chain import MiddlewareInfo, inspect_chain, mixin_hooks

MARKS = {"markcoroutinefunction", "_is_coroutine", "_is_coroutine_mark"}
STAY_ASYNC = (
    "Replace {path} with an asynchronous middleware (onloop's README, "
    '"Staying async"), or list it in SYNC_MIDDLEWARE to allow it.'
)


def check_middleware_imports(info: MiddlewareInfo) -> Iterator[CheckMessage]:
    if info.error:
        yield Error(
            f"The middleware '{info.path}' cannot be imported: {info.error!r}.",
            hint="Correct the dotted path in MIDDLEWARE, install the package that "
            "provides it, or fix its module.",
            id="onloop.E001",
        )


def check_coroutine_is_called_as_one(info: MiddlewareInfo) -> Iterator[CheckMessage]:
    if is_coroutine_called_synchronously(info):
        yield Error(
            f"'{info.path}' is a coroutine function, but Django calls it "
            "synchronously: every request fails.",
            hint=f"Write {info.path} as `def`: Django awaits the middleware that it "
            "returns, not the function itself."
            if iscoroutinefunction(info.middleware)
            else f"Decorate {info.path} with @async_only_middleware from "
            "django.utils.decorators."
            if info.cls is object
            else f"In {info.path}, set `sync_capable = False` and `async_capable = "
            "True`, and call `markcoroutinefunction(self)` of asgiref.sync in "
            "__init__().",
            id="onloop.E002",
        )


def check_coroutine_is_marked(info: MiddlewareInfo) -> Iterator[CheckMessage]:
    is_coroutine = iscoroutinefunction(info.cls.__call__)
    if info.is_async and is_coroutine and not is_marked(info.cls):
        yield Error(
            f"'{info.path}' has an asynchronous __call__(), but its instances are not "
            "marked as coroutine functions: the middlewares around it take its "
            "coroutine for a response.",
            hint=f"In {info.path}, call `markcoroutinefunction(self)` of asgiref.sync "
            "in __init__().",
            id="onloop.E003",
        )


def check_async_capable_is_true(info: MiddlewareInfo) -> Iterator[CheckMessage]:
    if info.is_async and _source.is_synchronous(info.middleware):
        yield Error(
            f"'{info.path}' says that it is async_capable, but it is synchronous: it "
            "takes the coroutine of get_response() for a response, or returns a "
            "response where Django awaits a coroutine.",
            hint=f"In {info.path}, write `async def` and `await` the call of "
            "get_response(); or remove `async_capable` (and the decorator that sets "
            "it): then each request waits for a thread to run it.",
            id="onloop.E004",
        )


def check_response_is_awaited(info: MiddlewareInfo) -> Iterator[CheckMessage]:
    for line, called in _source.unawaited(info.middleware):
        yield Error(
            f"'{info.path}' does not await get_response(): it takes the coroutine "
            f"for a response in `{line}`.",
            hint=f"In {info.path}, write `response = await {called}(request)` before "
            "the response is read, changed or returned.",
            id="onloop.E005",
        )


def check_mixin_hooks_are_synchronous(info: MiddlewareInfo) -> Iterator[CheckMessage]:
    for hook in mixin_hooks(info.cls):
        if iscoroutinefunction(getattr(info.cls, hook)):
            yield Error(
                f"'{info.path}' has an asynchronous {hook}(), which MiddlewareMixin "
                "cannot call: every request fails.",
                hint=f"In {info.path}, write an asynchronous __call__() without "
                f"MiddlewareMixin, or a synchronous {hook}().",
                id="onloop.E006",
            )


def check_synchronous_middleware(info: MiddlewareInfo) -> Iterator[CheckMessage]:
    is_async_capable = getattr(info.middleware, "async_capable", False)
    is_mistake = is_coroutine_called_synchronously(info)
    if is_unexpected(info) and not is_async_capable and not is_mistake:
        yield Warning(
            f"'{info.path}' is synchronous: each request waits for a thread to run it.",
            hint=STAY_ASYNC.format(path=info.path),
            id="onloop.W001",
        )


def check_hooks_in_threads(info: MiddlewareInfo) -> Iterator[CheckMessage]:
    # Under Django's own handler Django's own middlewares use threads too.
    if is_unexpected(info) and info.thread_hooks and not _compat.PROBLEM:
        yield Warning(
            f"'{info.path}' is asynchronous, but its hooks are not: each request "
            f"waits for a thread to run {' and '.join(info.thread_hooks)}.",
            hint=STAY_ASYNC.format(path=info.path),
            id="onloop.W002",
        )


def check_observers_are_outermost() -> list[CheckMessage]:
    chain = inspect_chain()
    return [
        Warning(
            f"'{info.path}' observes neither the requests that "
            f"'{others[0].path}' answers nor the time that it takes.",
            hint=f"Move {info.path} to the top of MIDDLEWARE.",
            id="onloop.W003",
        )
        for position, info in enumerate(chain)
        if observes(info)
        and (others := [each for each in chain[:position] if not observes(each)])
    ]


def check_static_files_are_collected() -> list[CheckMessage]:
    # Imported here, because a server does not need it.
    from django.contrib.staticfiles import storage

    # Only a storage with a manifest has hashed_files, which collectstatic fills.
    files = settings.STATIC_URL and storage.staticfiles_storage
    if getattr(files, "hashed_files", True):
        return []
    message = "collectstatic has not run: pages that link to static files fail."
    return [Warning(message, "Run `manage.py collectstatic`.", id="onloop.W004")]


CHECKS = (
    check_middleware_imports,
    check_coroutine_is_called_as_one,
    check_coroutine_is_marked,
    check_async_capable_is_true,
    check_response_is_awaited,
    check_mixin_hooks_are_synchronous,
    check_synchronous_middleware,
    check_hooks_in_threads,
)


def check_middlewares() -> list[CheckMessage]:
    return [
        message
        for info in inspect_chain()
        for check in CHECKS
        for message in check(info)
    ]


def is_unexpected(info: MiddlewareInfo) -> bool:
    """Whether SYNC_MIDDLEWARE does not allow it to leave the event loop."""
    allowed = getattr(settings, "SYNC_MIDDLEWARE", ())
    return info.error is None and info.path not in allowed


def is_coroutine_called_synchronously(info: MiddlewareInfo) -> bool:
    return iscoroutinefunction(info.middleware) or (
        not info.is_async and _source.is_coroutine_only(info.middleware)
    )


def observes(info: MiddlewareInfo) -> bool:
    return hasattr(info.cls, "process_abort")


def is_marked(cls: type) -> bool:
    """Whether the class marks its instances, or itself, as coroutine functions."""
    init_is_overridden = False
    for base in cls.__mro__:
        if MARKS & vars(base).keys():
            return True
        for name, function in vars(base).items():
            if name == "__init__" and init_is_overridden:
                continue
            if isinstance(function, FunctionType) and marks(function):
                return True
        init = vars(base).get("__init__")
        if isinstance(init, FunctionType) and "super" not in names(init.__code__):
            init_is_overridden = True
    return False


def marks(function: FunctionType, follow: bool = True) -> bool:
    """Whether the function, or one of its module that it calls, marks something."""
    used = names(function.__code__)
    called = [function.__globals__.get(name) for name in used]
    return bool(MARKS & used) or any(
        call is markcoroutinefunction
        or (follow and isinstance(call, FunctionType) and marks(call, follow=False))
        for call in called
    )


def names(code: CodeType) -> set[str]:
    inner = [names(const) for const in code.co_consts if isinstance(const, CodeType)]
    return {*code.co_names}.union(*inner)
