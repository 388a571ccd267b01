"""What slows the service down, or breaks a request, found before it does.

README.md says what each id means. To allow a middleware that leaves the loop, list
it in SYNC_MIDDLEWARE.
"""

import ast
import inspect
from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.middleware.cache import UpdateCacheMiddleware
from django.utils.deprecation import MiddlewareMixin

from serving import chain, source
from serving.environment import CONDITIONS, parse_header
from serving.middleware import HeaderMiddleware, LogMiddleware, TimingMiddleware
from serving.threads import MAX_IDLE

HOOKS = ("process_request", "process_response")


def register_checks() -> None:
    for check in (
        check_middleware_imports,
        check_coroutine_is_run_as_one,
        check_coroutine_is_marked,
        check_async_flag_is_true,
        check_response_is_awaited,
        check_mixin_hooks_are_synchronous,
        check_response_header,
        check_header_condition,
        check_pool_is_not_persistent,
        check_synchronous_middleware,
        check_hops,
        check_log_and_timing_are_outermost,
        check_header_is_outside_the_caches,
        check_connections_are_kept,
        check_kept_connections_are_tested,
        check_pool_is_large_enough,
    ):
        register(check, "serving")
    register(check_server_timing, Tags.security, deploy=True)


def check_middleware_imports(**kwargs: Any) -> list[CheckMessage]:
    return [
        Error(
            f"The middleware '{link.path}' cannot be imported: {link.error!r}.",
            hint="Correct the dotted path in MIDDLEWARE, install the package that "
            "holds it, or repair its module.",
            id="serving.E001",
        )
        for link in chain.read()
        if link.error
    ]


def check_coroutine_is_run_as_one(**kwargs: Any) -> list[CheckMessage]:
    return [
        Error(
            f"'{link.path}' is asynchronous, but Django runs it as synchronous: "
            "every request fails.",
            hint=f"Decorate {link.path} with @async_only_middleware from "
            "django.utils.decorators."
            if link.cls is object
            else f"In {link.path}, set `sync_capable = False` and `async_capable = "
            "True`, and call `markcoroutinefunction(self)` of asgiref.sync in "
            "__init__().",
            id="serving.E002",
        )
        for link in chain.read()
        if not link.asynchronous and is_coroutine_only(link.middleware)
    ]


def check_coroutine_is_marked(**kwargs: Any) -> list[CheckMessage]:
    return [
        Error(
            f"'{link.path}' has an asynchronous __call__(), but its instances are "
            "not marked as such: the middlewares around it take its coroutine for a "
            "response.",
            hint=f"In {link.path}, call `markcoroutinefunction(self)` of asgiref.sync "
            "in __init__().",
            id="serving.E003",
        )
        for link in chain.read()
        if link.asynchronous
        and inspect.iscoroutinefunction(link.cls.__call__)
        and not source.is_marked(link.cls)
    ]


def check_async_flag_is_true(**kwargs: Any) -> list[CheckMessage]:
    return [
        Error(
            f"'{link.path}' says that it is async_capable, but it answers "
            "synchronously: it takes the coroutine of get_response() for a response.",
            hint=f"In {link.path}, write `async def` and `await` the call of "
            "get_response(); or drop `async_capable` (and the decorator that sets "
            "it), at the price of a thread for each request.",
            id="serving.E004",
        )
        for link in chain.read()
        if link.asynchronous and is_synchronous(link.middleware)
    ]


def check_response_is_awaited(**kwargs: Any) -> list[CheckMessage]:
    return [
        Error(
            f"'{link.path}' does not await get_response(): it takes the coroutine "
            f"for a response in `{line}`.",
            hint=f"In {link.path}, write `response = await {called}(request)` before "
            "the response is read, changed or returned.",
            id="serving.E005",
        )
        for link in chain.read()
        for line, called in unawaited(link.middleware)
    ]


def check_mixin_hooks_are_synchronous(**kwargs: Any) -> list[CheckMessage]:
    return [
        Error(
            f"'{link.path}' has an asynchronous {hook}(), which MiddlewareMixin "
            "cannot call: every request fails.",
            hint=f"In {link.path}, write an asynchronous __call__() without "
            f"MiddlewareMixin, or a synchronous {hook}().",
            id="serving.E006",
        )
        for link in chain.read()
        if chain.uses_mixin_hooks(link.cls)
        for hook in HOOKS
        if inspect.iscoroutinefunction(getattr(link.cls, hook, None))
    ]


def check_response_header(**kwargs: Any) -> list[CheckMessage]:
    if position(HeaderMiddleware) is None:
        return []
    header = getattr(settings, "RESPONSE_HEADER", "")
    try:
        parse_header(header)
    except ValueError as error:
        return [
            Error(
                f"RESPONSE_HEADER={header!r} is no header of RFC 9110: {error}.",
                hint="Set RESPONSE_HEADER to 'Name: value', such as 'X-Status: OK'.",
                id="serving.E007",
            )
        ]
    return []


def check_header_condition(**kwargs: Any) -> list[CheckMessage]:
    condition = getattr(settings, "RESPONSE_HEADER_WHEN", "")
    if position(HeaderMiddleware) is None or condition in CONDITIONS:
        return []
    return [
        Error(
            f"RESPONSE_HEADER_WHEN={condition!r} is not known.",
            hint=f"Set RESPONSE_HEADER_WHEN to one of {', '.join(CONDITIONS)}.",
            id="serving.E008",
        )
    ]


def check_pool_is_not_persistent(**kwargs: Any) -> list[CheckMessage]:
    return [
        Error(
            f"DATABASES['{alias}'] has both psycopg's pool and a CONN_MAX_AGE: "
            "Django refuses to connect.",
            hint="Drop OPTIONS['pool'], as the threads keep their connections; or "
            "set CONN_MAX_AGE to 0.",
            id="serving.E009",
        )
        for alias, database in databases()
        if pool(database) and database.get("CONN_MAX_AGE", 0) != 0
    ]


def check_synchronous_middleware(**kwargs: Any) -> list[CheckMessage]:
    links = chain.read()
    total = sum(link.hops for link in links)
    return [
        Warning(
            f"'{link.path}' is synchronous: each request waits for a thread to run "
            f"it ({chain.times(link.hops)} of {total}).",
            hint=f"Replace {link.path} with an asynchronous middleware (README.md, "
            '"Staying async"), or list it in SYNC_MIDDLEWARE to allow it.',
            id="serving.W001",
        )
        for link in links
        if is_unasked(link) and not can_be_asynchronous(link)
    ]


def check_hops(**kwargs: Any) -> list[CheckMessage]:
    links = chain.read()
    total = sum(link.hops for link in links)
    return [
        Warning(
            f"'{link.path}' goes to a thread {where(link)}: each request pays "
            f"{chain.times(link.hops)} of {total}.",
            hint=(
                "Its hooks are called through MiddlewareMixin. "
                if issubclass(link.cls, MiddlewareMixin)
                else ""
            )
            + f"Replace {link.path} with an asynchronous middleware (README.md, "
            '"Staying async"), or list it in SYNC_MIDDLEWARE to allow it.',
            id="serving.W002",
        )
        for link in links
        if is_unasked(link) and link.hops and can_be_asynchronous(link)
    ]


def check_log_and_timing_are_outermost(**kwargs: Any) -> list[CheckMessage]:
    ours = (LogMiddleware, TimingMiddleware)
    wanted = [cls for cls in ours if position(cls) is not None]
    return [
        Warning(
            f"'{dotted(cls)}' is not number {place} in MIDDLEWARE: what is outside of "
            "it is neither timed nor logged with the request's id.",
            hint=f"Move {dotted(cls)} to the top of MIDDLEWARE"
            + (f", after {dotted(wanted[0])}." if place > 1 else "."),
            id="serving.W003",
        )
        for place, cls in enumerate(wanted, 1)
        if position(cls) != place - 1
    ]


def check_header_is_outside_the_caches(**kwargs: Any) -> list[CheckMessage]:
    header, cache = position(HeaderMiddleware), position(UpdateCacheMiddleware)
    if header is None or cache is None or header < cache:
        return []
    path = settings.MIDDLEWARE[cache]
    return [
        Warning(
            f"'{dotted(HeaderMiddleware)}' is inside of '{path}': the header is "
            "stored with the page, and stays when its condition or value changes.",
            hint=f"Move {dotted(HeaderMiddleware)} before {path} in MIDDLEWARE.",
            id="serving.W004",
        )
    ]


def check_server_timing(**kwargs: Any) -> list[CheckMessage]:
    if settings.DEBUG or getattr(settings, "SERVER_TIMING", "") != "always":
        return []
    return [
        Warning(
            "SERVER_TIMING='always' tells every client how long its request took, "
            "from which it can infer what is not for it to know.",
            hint="Set SERVER_TIMING to 'debug' or 'never'.",
            id="serving.W005",
        )
    ]


def check_connections_are_kept(**kwargs: Any) -> list[CheckMessage]:
    return [
        Warning(
            f"DATABASES['{alias}'] closes its connection after each request "
            "(CONN_MAX_AGE=0), though the threads would keep it.",
            hint=f"Set CONN_MAX_AGE, such as 60, in DATABASES['{alias}'], or psycopg's "
            "OPTIONS['pool'].",
            id="serving.W006",
        )
        for alias, database in databases()
        if not pool(database) and database.get("CONN_MAX_AGE", 0) == 0
    ]


def check_kept_connections_are_tested(**kwargs: Any) -> list[CheckMessage]:
    return [
        Warning(
            f"DATABASES['{alias}'] keeps connections (CONN_MAX_AGE) without testing "
            "them: when the database restarts, one request fails for each.",
            hint=f"Set CONN_HEALTH_CHECKS to True in DATABASES['{alias}'].",
            id="serving.W007",
        )
        for alias, database in databases()
        if database.get("CONN_MAX_AGE", 0) != 0
        and not database.get("CONN_HEALTH_CHECKS")
    ]


def check_pool_is_large_enough(**kwargs: Any) -> list[CheckMessage]:
    return [
        Warning(
            f"DATABASES['{alias}'] has a pool of psycopg's default size, 4: further "
            "requests hold a thread and wait for a connection.",
            hint="Set max_size in OPTIONS['pool'] to the number of requests that may "
            f"use the database at once; {MAX_IDLE} threads are kept for them.",
            id="serving.W008",
        )
        for alias, database in databases()
        if (options := pool(database))
        and (options is True or not {"min_size", "max_size"} & options.keys())
    ]


def position(cls: type) -> int | None:
    """Of the first of its kind in MIDDLEWARE."""
    for index, link in enumerate(chain.read()):
        if issubclass(link.cls, cls):
            return index
    return None


def dotted(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def is_coroutine_only(middleware: Any) -> bool:
    if isinstance(middleware, type):
        return inspect.iscoroutinefunction(middleware.__call__)
    inner = source.inner_functions(middleware)
    return bool(inner) and all(isinstance(f, ast.AsyncFunctionDef) for f in inner)


def is_synchronous(middleware: Any) -> bool:
    if isinstance(middleware, type):
        call = middleware.__call__
        return not inspect.iscoroutinefunction(call) and source.returns_response(call)
    inner = source.inner_functions(middleware)
    return bool(inner) and all(
        isinstance(f, ast.FunctionDef) and source.misuse(f) for f in inner
    )


def unawaited(middleware: Any) -> Iterator[tuple[str, str]]:
    """The code that misuses get_response(), and how that is called there."""
    if isinstance(middleware, type):
        functions = [source.parse(source.coroutine_of(middleware))]
    else:
        functions = [*source.inner_functions(middleware)]
    for function in functions:
        if isinstance(function, ast.AsyncFunctionDef) and (
            misuse := source.misuse(function)
        ):
            yield misuse


def can_be_asynchronous(link: chain.Link) -> bool:
    return getattr(link.middleware, "async_capable", False)


def is_unasked(link: chain.Link) -> bool:
    """Whether it would leave the loop without having been allowed to."""
    allowed = getattr(settings, "SYNC_MIDDLEWARE", ())
    return link.error is None and link.path not in allowed


def where(link: chain.Link) -> str:
    parts = ("request", "view", "response")
    return " and ".join(f"for the {part}" for part in parts if getattr(link, part))


def databases() -> list[tuple[str, dict[str, Any]]]:
    """Those at the other end of a connection."""
    return [
        (alias, database)
        for alias, database in settings.DATABASES.items()
        if "sqlite" not in database.get("ENGINE", "")
    ]


def pool(database: dict[str, Any]) -> Any:
    return database.get("OPTIONS", {}).get("pool")
