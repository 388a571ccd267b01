"""Run Django's own middleware on the event loop wherever it does no I/O.

MiddlewareMixin runs its hooks in a thread, because those of a subclass might block. For
each hook listed here, a condition tells when it does no I/O; otherwise it runs in the
request's thread. Either way it is Django's code that runs, so responses are the same.

Nothing in Django is patched: the handler rearranges its own chain while it loads it.

Not listed, and so run in a thread as with Django's handler: the cache middleware and
CurrentSiteMiddleware (they read caches and the database), and XViewMiddleware.
RemoteUserMiddleware is asynchronous itself.
"""

import logging
from collections.abc import Awaitable, Callable, Iterator
from functools import update_wrapper, wraps
from inspect import iscoroutinefunction
from types import CodeType, FunctionType, MethodType, SimpleNamespace
from typing import Any, NamedTuple

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.sessions.backends.base import SessionBase
from django.contrib.sessions.backends.signed_cookies import (
    SessionStore as SignedCookieStore,
)
from django.core.handlers import exception
from django.core.handlers.base import BaseHandler
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.middleware.csrf import CsrfViewMiddleware
from django.urls import get_callable, get_resolver, get_urlconf
from django.utils import deprecation
from django.utils.deprecation import MiddlewareMixin
from django.utils.functional import SimpleLazyObject, empty
from django.utils.log import log_response
from django.utils.translation import trans_real

from onloop._chain import is_called_by_mixin
from onloop._compat import defined_in
from onloop.outcome import Refusal

logger = logging.getLogger("onloop.handler")

# Compressing or hashing this many bytes takes about as long as a thread hop.
MAX_INLINE_BYTES = 4096


def never_blocks(*args: object) -> bool:
    return True


def defined_by_django(cls: type, *names: str) -> bool:
    # Not by __module__, which functools.wraps() copies.
    found = (getattr(getattr(cls, name, None), "__globals__", {}) for name in names)
    return all(module.get("__name__", "").startswith("django.") for module in found)


# The conditions that are too long for an expression.


def session_starts_inline(middleware: Any, request: Any) -> bool:
    store = middleware.SessionStore
    if hasattr(store, "cache_key_prefix"):
        cache = settings.CACHES[settings.SESSION_CACHE_ALIAS]
        if not cache["BACKEND"].startswith("django.core.cache.backends."):
            # Each request creates a cache object, which may open files.
            return False
    return defined_by_django(store, "__init__") and (
        # The file-based engine looks up its folder only once.
        not hasattr(store, "_get_storage_path") or hasattr(store, "_storage_path")
    )


def session_needs_no_save(middleware: Any, request: Any, response: Any) -> bool:
    session = getattr(request, "session", None)
    if session is None:
        return True
    if not isinstance(session, SessionBase):
        return False
    if not defined_by_django(type(session), "is_empty"):
        return False
    saves = session.modified or settings.SESSION_SAVE_EVERY_REQUEST
    return (
        not saves
        or session.is_empty()
        # It is stored in the cookie, so saving it only signs it.
        or (
            type(session) is SignedCookieStore
            and defined_by_django(session.serializer, "dumps")
        )
    )


def no_messages_to_store(middleware: Any, request: Any, response: Any) -> bool:
    storage = getattr(request, "_messages", None)
    return storage is None or (
        defined_by_django(type(storage), "update")
        and not storage.used
        and not storage.added_new
    )


def catalogs_loaded(middleware: Any, request: Any) -> bool:
    # The first request in a language reads its catalogs from disk.
    loaded = trans_real._translations  # type: ignore[attr-defined]
    return all(code in loaded for code, _ in settings.LANGUAGES)


def is_found(middleware: Any, request: Any, response: HttpResponseBase) -> bool:
    return response.status_code != 404


def is_small_or_streaming(middleware: Any, request: Any, response: Any) -> bool:
    return bool(response.streaming or len(response.content) <= MAX_INLINE_BYTES)


def user_is_known(request: HttpRequest) -> bool:
    """Whether evaluating ``request.user`` reads neither session nor database."""
    user = vars(request).get("user")
    lazy = type(user) is SimpleLazyObject and vars(user).get("_setupfunc")
    if not lazy or lazy.__module__ != "django.contrib.auth.middleware":
        return False
    session = request.session
    return vars(user)["_wrapped"] is not empty or (
        defined_by_django(type(session), "is_empty", "__getitem__", "_get_session")
        and session.is_empty()
    )


# process_view is called by the handler, and not by the middleware's __acall__().

ViewHook = Callable[..., Awaitable[HttpResponseBase | None]]


def login_required(middleware: Any, method: Callable[..., Any]) -> ViewHook:
    in_thread = sync_to_async(method)

    async def process_view(request: HttpRequest, *view: Any) -> Any:
        if user_is_known(request):
            return method(request, *view)
        return await in_thread(request, *view)

    return process_view


def csrf(middleware: Any, method: Callable[..., Any]) -> ViewHook:
    # An instance of Django's own class, by whose name instrumentations report it.
    checking: Any = CsrfViewMiddleware(middleware.get_response)
    checking._reject = lambda request, reason: reason
    # Rejecting a request renders a page, perhaps by a view of the project.
    reject = sync_to_async(middleware._reject)
    in_thread = sync_to_async(method)
    # An instrumentation's wrapper around the method must not be bypassed.
    is_wrapped = type(method) is not MethodType

    async def process_view(request: HttpRequest, callback: Any, *args: Any) -> Any:
        if request.method in {"GET", "HEAD", "OPTIONS", "TRACE"} or getattr(
            callback, "csrf_exempt", False
        ):
            return method(request, callback, *args)
        if not is_wrapped and csrf_check_is_inline(request):
            response = checking.process_view(request, callback, *args)
            if isinstance(response, str):
                response = await reject(request, response)
            return response
        return await in_thread(request, callback, *args)

    return process_view


def csrf_check_is_inline(request: HttpRequest) -> bool:
    return not settings.CSRF_USE_SESSIONS and (
        request.method != "POST"
        or hasattr(request, "_post")
        or request.content_type
        not in {"multipart/form-data", "application/x-www-form-urlencoded"}
    )


class Hooks(NamedTuple):
    """Conditions under which a hook does no I/O; None where there is no hook.

    Each is evaluated on the loop, just before its hook runs.
    """

    process_request: Callable[..., bool] | None = None
    process_response: Callable[..., bool] | None = None
    process_view: Callable[[Any, Callable[..., Any]], ViewHook] | None = None


HOOKS = {
    "django.middleware.security.SecurityMiddleware": Hooks(never_blocks, never_blocks),
    "django.contrib.sessions.middleware.SessionMiddleware": Hooks(
        session_starts_inline, session_needs_no_save
    ),
    "django.middleware.common.CommonMiddleware": Hooks(
        # A redirect to www resolves URLs, and their converters may block.
        lambda middleware, request: not settings.PREPEND_WWW,
        lambda middleware, request, response: (
            response.status_code != 404
            or not settings.APPEND_SLASH
            or request.path_info.endswith("/")
        ),
    ),
    "django.middleware.csrf.CsrfViewMiddleware": Hooks(
        lambda middleware, request: not settings.CSRF_USE_SESSIONS,
        lambda middleware, request, response: (
            not (
                settings.CSRF_USE_SESSIONS
                and request.META.get("CSRF_COOKIE_NEEDS_UPDATE")
            )
        ),
        csrf,
    ),
    "django.contrib.auth.middleware.AuthenticationMiddleware": Hooks(never_blocks),
    "django.contrib.auth.middleware.LoginRequiredMiddleware": Hooks(
        process_view=login_required
    ),
    "django.contrib.messages.middleware.MessageMiddleware": Hooks(
        lambda middleware, request: settings.MESSAGE_STORAGE.startswith(
            "django.contrib.messages.storage."
        ),
        no_messages_to_store,
    ),
    "django.middleware.clickjacking.XFrameOptionsMiddleware": Hooks(None, never_blocks),
    "django.middleware.csp.ContentSecurityPolicyMiddleware": Hooks(
        never_blocks, never_blocks
    ),
    "django.middleware.locale.LocaleMiddleware": Hooks(catalogs_loaded, is_found),
    "django.middleware.http.ConditionalGetMiddleware": Hooks(
        None, is_small_or_streaming
    ),
    "django.middleware.gzip.GZipMiddleware": Hooks(
        None,
        lambda middleware, request, response: (
            "gzip" not in request.META.get("HTTP_ACCEPT_ENCODING", "")
            or response.has_header("Content-Encoding")
            or is_small_or_streaming(middleware, request, response)
        ),
    ),
    "django.middleware.common.BrokenLinkEmailsMiddleware": Hooks(None, is_found),
    "django.contrib.redirects.middleware.RedirectFallbackMiddleware": Hooks(
        None, is_found
    ),
    "django.contrib.flatpages.middleware.FlatpageFallbackMiddleware": Hooks(
        None, is_found
    ),
}


def hooks_of(cls: Any) -> Hooks | None:
    """The conditions for one of Django's classes; None if it is unknown or changed."""
    hooks = HOOKS.get(f"{cls.__module__}.{cls.__qualname__}")
    if hooks is None:
        return None
    known = [name for name, hook in hooks._asdict().items() if hook is not None]
    present = [name for name in dir(cls) if name.startswith("process_")]
    is_stock = (
        is_called_by_mixin(cls)
        and set(known) == set(present)
        and defined_by_django(cls, *present)
        and not any(iscoroutinefunction(getattr(cls, name)) for name in present)
    )
    return hooks if is_stock else None


def mixin_is_original() -> bool:
    """Whether no instrumentation observes ``MiddlewareMixin.__call__()``.

    ddtrace replaces the code of the function, not the function.
    """
    call = MiddlewareMixin.__call__
    return defined_in(call, deprecation) and "__acall__" in call.__code__.co_names


# A middleware, and the conditions of its process_request and process_response.
Step = tuple[Any, Callable[..., bool] | None, Callable[..., bool] | None]


async def _nothing(request: HttpRequest) -> Any: ...


# The code of the coroutine function that Django puts around each middleware.
CONVERTS_EXCEPTIONS = exception.convert_exception_to_response(_nothing).__code__


def run_steps(steps: list[Step], converts: bool) -> Callable[..., Awaitable[Any]]:
    """Run the hooks of all steps in one coroutine, instead of three for each.

    With ``converts``, it also converts the exceptions of the first step to responses.
    """
    get_response = steps[-1][0].get_response
    # One more layer that converts exceptions, around the first step.
    more = int(converts)

    async def run(request: HttpRequest) -> Any:
        entered = 0
        response = None
        try:
            for middleware, is_inline, _ in steps:
                entered += 1
                if is_inline is None:
                    continue
                if is_inline is never_blocks or is_inline(middleware, request):
                    response = middleware.process_request(request)
                else:
                    response = await sync_to_async(middleware.process_request)(request)
                if response:
                    break
            else:
                response = await get_response(request)
        except Exception as exc:  # noqa: BLE001
            response, remaining = await response_of(request, exc, entered - 1 + more)
            entered = remaining - more
        while entered:
            entered -= 1
            middleware, _, is_inline = steps[entered]
            if is_inline is None:
                continue
            try:
                if is_inline is never_blocks or is_inline(
                    middleware, request, response
                ):
                    response = middleware.process_response(request, response)
                else:
                    hook = sync_to_async(middleware.process_response)
                    response = await hook(request, response)
            except Exception as exc:  # noqa: BLE001
                response, remaining = await response_of(request, exc, entered + more)
                entered = remaining - more
        return response

    run.inlined_steps = steps  # type: ignore[attr-defined]
    return run


_view = SimpleNamespace(get_response=_nothing)
RUN_CODE = run_steps([(_view, None, None)], converts=False).__code__


async def response_of(
    request: HttpRequest, exc: Exception, around: int
) -> tuple[Any, int]:
    """Convert ``exc``, which was caught inside ``around`` steps, to a response.

    As in Django, each step converts an exception that the conversion inside it raised.
    Also return how many steps remain around the response.
    """
    if not around:
        raise exc
    try:
        return await convert(request, exc), around
    except Exception as another:  # noqa: BLE001
        return await response_of(request, another, around - 1)


async def convert(request: HttpRequest, exc: Exception) -> Any:
    if isinstance(exc, Refusal):
        return refuse(request, exc)
    make_response = sync_to_async(
        exception.response_for_exception, thread_sensitive=False
    )
    return await make_response(request, exc)


def refuse(request: HttpRequest, exc: Refusal) -> HttpResponse:
    """Answer on the loop, because the lack of a thread may be the reason."""
    response = HttpResponse(status=exc.status, content_type="text/plain")
    response.content = f"{response.reason_phrase}\n"
    name = f"handler{exc.status}"
    try:
        # Django's resolve_error_handler() knows only the statuses that Django handles.
        urlconf = get_resolver(get_urlconf()).urlconf_module
        if handler := getattr(urlconf, name, None):
            page = get_callable(handler)(request, exception=exc)
            response = page.render() if hasattr(page, "render") else page
    except Exception:
        logger.exception("%s failed", name)
    for header, value in exc.headers.items():
        response.headers[header] = value
    log_response(
        *("%s: %s", exc, request.path),
        response=response,
        request=request,
        level="warning",
    )
    return response


def convert_exceptions(
    get_response: Callable[..., Awaitable[Any]],
) -> Callable[..., Awaitable[Any]]:
    """Like Django's convert_exception_to_response(), but convert a Refusal too."""

    @wraps(get_response)
    async def inner(request: HttpRequest) -> Any:
        try:
            return await get_response(request)
        except Exception as exc:  # noqa: BLE001
            return await convert(request, exc)

    return inner


CONVERT_CODE = convert_exceptions(_nothing).__code__


def load_catalogs() -> None:
    """Load those of the project's own languages, so that no request has to."""
    if settings.is_overridden("LANGUAGES"):  # type: ignore[misc]
        for code, _ in settings.LANGUAGES:
            trans_real.check_for_language(code)
            trans_real.translation(code)


class InliningHandler(BaseHandler):
    _middleware_chain: Any

    def load_middleware(self, is_async: bool = False) -> None:
        # The process_abort() methods of the chain, outermost first.
        self.abort_hooks: list[Callable[..., None]] = []
        super().load_middleware(is_async)
        if is_async and not is_code(self._middleware_chain, RUN_CODE, CONVERT_CODE):
            # The outermost middleware is synchronous, or instrumented.
            self._middleware_chain = convert_exceptions(self._middleware_chain)

    def adapt_method_mode(
        self,
        is_async: bool,
        method: Any,
        method_is_async: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Django calls this with each link of the chain, before it creates the next."""
        if method_is_async:
            link = method
            if is_code(link, CONVERTS_EXCEPTIONS):
                method = convert_exceptions(link.__wrapped__)
            for middleware in middlewares_of(link):
                if hooks := hooks_of(type(middleware)):
                    if hooks.process_request is catalogs_loaded:
                        load_catalogs()
                    # Its own step, and those of the inlined links directly inside it.
                    behind = getattr(middleware.get_response, "inlined_steps", ())
                    is_link = middleware is link.__wrapped__ and mixin_is_original()
                    run = run_steps([(middleware, *hooks[:2]), *behind], is_link)
                    if is_link:
                        method = run
                    else:
                        # Under the name that an instrumentation reports.
                        middleware.__acall__ = update_wrapper(run, middleware.__acall__)
                hook = getattr(middleware, "process_abort", None)
                # Django calls again if the link around it raises MiddlewareNotUsed.
                if hook is not None and hook not in self.abort_hooks:
                    self.abort_hooks.insert(0, hook)
        elif is_async and getattr(method, "__name__", "") == "process_view":
            middleware = getattr(method, "__self__", None)
            hooks = hooks_of(type(middleware))
            if hooks and hooks.process_view:
                return update_wrapper(hooks.process_view(middleware, method), method)
        return super().adapt_method_mode(
            is_async, method, method_is_async, *args, **kwargs
        )


def is_code(function: object, *codes: CodeType) -> bool:
    """Whether it is a function with one of these codes, and not a wrapper of one."""
    return type(function) is FunctionType and function.__code__ in codes


def middlewares_of(link: Any) -> Iterator[Any]:
    """The middleware in a link of the chain, and those that it wraps if it belongs to
    an instrumentation (such as Sentry).
    """
    if getattr(link, "__code__", None) is not CONVERTS_EXCEPTIONS:
        return
    middleware = link.__wrapped__
    yield middleware
    for value in getattr(middleware, "__dict__", {}).values():
        if "get_response" in getattr(value, "__dict__", ()) and not isinstance(
            value, FunctionType
        ):
            yield value
