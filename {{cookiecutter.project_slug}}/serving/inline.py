"""Django's own middleware on the event loop, wherever it does no I/O.

Every MiddlewareMixin of Django's sends its hooks to a thread, because a
subclass might block. The hooks listed here are Django's, and what they do is
known: each has a condition under which it does no I/O, and goes to the thread
without it. Django's code runs either way, so the responses are the same.

Not listed, and so in a thread as in stock: the cache middlewares and
CurrentSiteMiddleware (they read caches and the database), XViewMiddleware.
RemoteUserMiddleware is asynchronous by itself.
"""

from collections.abc import Awaitable, Callable, Iterable
from inspect import iscoroutinefunction
from typing import Any, NamedTuple

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.sessions.backends.base import SessionBase
from django.contrib.sessions.backends.signed_cookies import (
    SessionStore as SignedCookies,
)
from django.core.handlers.base import BaseHandler
from django.core.handlers.exception import (
    convert_exception_to_response,
    response_for_exception,
)
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.middleware.csrf import CsrfViewMiddleware
from django.utils.deprecation import MiddlewareMixin
from django.utils.functional import SimpleLazyObject
from django.utils.module_loading import import_string
from django.utils.translation import trans_real

ViewHook = Callable[..., Awaitable[HttpResponseBase | None]]

# Compressing or hashing this many bytes takes about as long as a thread hop.
SMALL = 4096


def always(*args: object) -> bool:
    return True


def djangos(cls: type, *names: str) -> bool:
    """Whether these attributes of the class come from Django itself."""
    return all(
        (getattr(getattr(cls, name, None), "__module__", None) or "").startswith(
            "django."
        )
        for name in names
    )


# The conditions. Each is asked on the loop just before its hook runs.


def session_is_djangos(middleware: Any, request: HttpRequest) -> bool:
    return djangos(middleware.SessionStore, "__init__")


def session_starts_inline(middleware: Any, request: HttpRequest) -> bool:
    store = middleware.SessionStore
    return session_is_djangos(middleware, request) and (
        # The file engine looks for its folder once.
        not hasattr(store, "_get_storage_path") or hasattr(store, "_storage_path")
    )


def session_needs_no_save(
    middleware: Any, request: HttpRequest, response: HttpResponseBase
) -> bool:
    session = getattr(request, "session", None)
    if session is None:
        return True
    if not (isinstance(session, SessionBase) and djangos(type(session), "is_empty")):
        return False
    saves = session.modified or settings.SESSION_SAVE_EVERY_REQUEST
    return (
        not saves
        or session.is_empty()
        # Its storage is the cookie, and saving is signing.
        or (type(session) is SignedCookies and djangos(session.serializer, "dumps"))
    )


def no_redirect_to_www(middleware: Any, request: HttpRequest) -> bool:
    # Such a redirect resolves URLs, and their converters are anybody's code.
    return not settings.PREPEND_WWW


def no_redirect_to_slash(
    middleware: Any, request: HttpRequest, response: HttpResponseBase
) -> bool:
    return (
        response.status_code != 404
        or not settings.APPEND_SLASH
        or request.path_info.endswith("/")
    )


def found(middleware: Any, request: HttpRequest, response: HttpResponseBase) -> bool:
    return response.status_code != 404


def csrf_secret_in_cookie(middleware: Any, request: HttpRequest) -> bool:
    return not settings.CSRF_USE_SESSIONS


def csrf_secret_stays(
    middleware: Any, request: HttpRequest, response: HttpResponseBase
) -> bool:
    return not (
        settings.CSRF_USE_SESSIONS and request.META.get("CSRF_COOKIE_NEEDS_UPDATE")
    )


def messages_are_djangos(middleware: Any, request: HttpRequest) -> bool:
    return settings.MESSAGE_STORAGE.startswith("django.contrib.messages.storage.")


def no_messages_to_store(
    middleware: Any, request: HttpRequest, response: HttpResponseBase
) -> bool:
    storage = getattr(request, "_messages", None)
    return storage is None or (
        djangos(type(storage), "update") and not storage.used and not storage.added_new
    )


def languages_loaded(middleware: Any, request: HttpRequest) -> bool:
    # The first request in a language reads its catalogs from disk.
    loaded = trans_real._translations  # type: ignore[attr-defined]
    return all(code in loaded for code, _ in settings.LANGUAGES)


def small_or_streaming(
    middleware: Any, request: HttpRequest, response: HttpResponseBase
) -> bool:
    return response.streaming or len(response.content) <= SMALL  # type: ignore[attr-defined]


def little_to_compress(
    middleware: Any, request: HttpRequest, response: HttpResponseBase
) -> bool:
    return (
        "gzip" not in request.META.get("HTTP_ACCEPT_ENCODING", "")
        or response.has_header("Content-Encoding")
        or small_or_streaming(middleware, request, response)
    )


def user_is_known(request: HttpRequest) -> bool:
    """Whether looking at ``request.user`` reads neither session nor database."""
    user = vars(request).get("user")
    lazy = type(user) is SimpleLazyObject and vars(user).get("_setupfunc")
    if not lazy or lazy.__module__ != "django.contrib.auth.middleware":
        return False
    session = request.session
    return hasattr(request, "_cached_user") or (
        djangos(type(session), "is_empty", "__getitem__", "_get_session")
        and session.is_empty()
    )


# process_view is not called through __acall__, but by the handler.


def login_required(middleware: Any) -> ViewHook:
    in_thread = sync_to_async(middleware.process_view)

    async def process_view(request: HttpRequest, *view: Any) -> Any:
        if user_is_known(request):
            return middleware.process_view(request, *view)
        return await in_thread(request, *view)

    return process_view


class Rejected(Exception):
    pass


class Accepting(CsrfViewMiddleware):
    def _reject(self, request: HttpRequest, reason: str) -> Any:
        raise Rejected


def csrf(middleware: Any) -> ViewHook:
    accepting: Any = Accepting(middleware.get_response)
    in_thread = sync_to_async(middleware.process_view)

    async def process_view(request: HttpRequest, callback: Any, *args: Any) -> Any:
        if csrf_check_is_inline(request, callback):
            try:
                return accepting.process_view(request, callback, *args)
            except Rejected:
                # The page that says so is rendered, by a view of the project.
                pass
        return await in_thread(request, callback, *args)

    return process_view


def csrf_check_is_inline(request: HttpRequest, callback: Any) -> bool:
    if request.method in {"GET", "HEAD", "OPTIONS", "TRACE"}:
        return True
    if getattr(callback, "csrf_exempt", False):
        return True
    return not settings.CSRF_USE_SESSIONS and (
        request.method != "POST"
        or hasattr(request, "_post")
        or request.content_type
        not in {"multipart/form-data", "application/x-www-form-urlencoded"}
    )


class Hooks(NamedTuple):
    """Conditions under which a hook does no I/O; None where there is no hook."""

    process_request: Callable[..., bool] | None = None
    process_response: Callable[..., bool] | None = None
    process_view: Callable[[Any], ViewHook] | None = None


HOOKS = {
    "django.middleware.security.SecurityMiddleware": Hooks(always, always),
    "django.contrib.sessions.middleware.SessionMiddleware": Hooks(
        session_starts_inline, session_needs_no_save
    ),
    "django.middleware.common.CommonMiddleware": Hooks(
        no_redirect_to_www, no_redirect_to_slash
    ),
    "django.middleware.csrf.CsrfViewMiddleware": Hooks(
        csrf_secret_in_cookie, csrf_secret_stays, csrf
    ),
    "django.contrib.auth.middleware.AuthenticationMiddleware": Hooks(always),
    "django.contrib.auth.middleware.LoginRequiredMiddleware": Hooks(
        process_view=login_required
    ),
    "django.contrib.messages.middleware.MessageMiddleware": Hooks(
        messages_are_djangos, no_messages_to_store
    ),
    "django.middleware.clickjacking.XFrameOptionsMiddleware": Hooks(None, always),
    "django.middleware.csp.ContentSecurityPolicyMiddleware": Hooks(always, always),
    "django.middleware.locale.LocaleMiddleware": Hooks(languages_loaded, found),
    "django.middleware.http.ConditionalGetMiddleware": Hooks(None, small_or_streaming),
    "django.middleware.gzip.GZipMiddleware": Hooks(None, little_to_compress),
    "django.middleware.common.BrokenLinkEmailsMiddleware": Hooks(None, found),
    "django.contrib.redirects.middleware.RedirectFallbackMiddleware": Hooks(
        None, found
    ),
    "django.contrib.flatpages.middleware.FlatpageFallbackMiddleware": Hooks(
        None, found
    ),
}


def one_language(middleware: Any, request: HttpRequest) -> bool:
    # Of many, one or another is not loaded for long.
    return len(settings.LANGUAGES) == 1


# What remains of a condition when the process has served a while.
WARM: dict[Callable[..., bool], Callable[..., bool]] = {
    languages_loaded: one_language,
    session_starts_inline: session_is_djangos,
}

_installed: dict[Any, Hooks] = {}


def install(paths: Iterable[str] | None = None) -> None:
    """Patch these classes of Django's, by default those in ``MIDDLEWARE``."""
    for path in settings.MIDDLEWARE if paths is None else paths:
        if path not in HOOKS:
            continue
        cls, hooks = import_string(path), HOOKS[path]
        if not is_stock(cls, hooks):
            continue
        cls.__acall__ = acall(cls)
        _installed[cls] = hooks


def hops(cls: Any) -> tuple[int, int, int] | None:
    """For request, view and response of a plain request; None if not patched."""
    if cls not in _installed:
        return None
    on_request, on_response, _ = _installed[cls]
    middleware, request, response = cls(always), HttpRequest(), HttpResponse()

    def hop(condition: Callable[..., bool] | None, *args: Any) -> int:
        if condition is None:
            return 0
        return int(not WARM.get(condition, condition)(middleware, *args))

    return hop(on_request, request), 0, hop(on_response, request, response)


def hops_in_mixin(cls: Any) -> bool:
    """Whether each hook goes to a thread; in a subclass of a patched class too."""
    known = [MiddlewareMixin, *_installed]
    return cls not in _installed and any(
        cls.__acall__ is vars(base).get("__acall__") for base in known
    )


def is_stock(cls: type, hooks: Hooks) -> bool:
    """Whether the class is Django's as known here: synchronous, unpatched."""
    known = [name for name, hook in hooks._asdict().items() if hook is not None]
    have = [name for name in dir(cls) if name.startswith("process_")]
    return (
        issubclass(cls, MiddlewareMixin)
        and cls.__call__ is MiddlewareMixin.__call__
        and getattr(cls, "__acall__") is getattr(MiddlewareMixin, "__acall__")  # noqa: B009
        and set(known) == set(have)
        and djangos(cls, *have)
        and not any(iscoroutinefunction(getattr(cls, name)) for name in have)
    )


# A middleware, and when its hooks do no I/O.
Step = tuple[Any, Callable[..., bool] | None, Callable[..., bool] | None]


async def _nothing(request: HttpRequest) -> Any: ...


# Of the coroutine that Django puts around each middleware.
CONVERTS_EXCEPTIONS = convert_exception_to_response(_nothing).__code__


def steps_from(first: Any) -> list[Step]:
    """This middleware, and those right behind it that are patched too."""
    steps = [(first, *_installed[type(first)][:2])]
    around = first.get_response
    while getattr(around, "__code__", None) is CONVERTS_EXCEPTIONS:
        middleware = around.__wrapped__
        hooks = _installed.get(type(middleware))
        if not hooks or type(middleware).__call__ is not MiddlewareMixin.__call__:
            break
        steps.append((middleware, *hooks[:2]))
        around = middleware.get_response
    return steps


def acall(cls: Any) -> Callable[..., Awaitable[Any]]:
    stock = getattr(MiddlewareMixin, "__acall__")  # noqa: B009

    async def __acall__(self: Any, request: HttpRequest) -> Any:
        """All of its steps in one coroutine instead of three for each."""
        if type(self) is not cls:
            # What a subclass adds or overrides may block.
            return await stock(self, request)
        steps: list[Step] | None = vars(self).get("_steps")
        if steps is None:
            steps = self._steps = steps_from(self)
        entered = 0
        response = None
        try:
            for middleware, inline, _ in steps:
                entered += 1
                if inline is None:
                    continue
                if inline is always or inline(middleware, request):
                    response = middleware.process_request(request)
                else:
                    hook = sync_to_async(middleware.process_request)
                    response = await hook(request)
                if response:
                    break
            else:
                response = await middleware.get_response(request)
        except Exception as exc:  # noqa: BLE001
            response, entered = await response_of(request, exc, entered - 1)
        while entered:
            entered -= 1
            middleware, _, inline = steps[entered]
            if inline is None:
                continue
            try:
                if inline is always or inline(middleware, request, response):
                    response = middleware.process_response(request, response)
                else:
                    hook = sync_to_async(middleware.process_response)
                    response = await hook(request, response)
            except Exception as exc:  # noqa: BLE001
                response, entered = await response_of(request, exc, entered)
        return response

    return __acall__


async def response_of(
    request: HttpRequest, exc: Exception, around: int
) -> tuple[Any, int]:
    """Called where ``exc`` was caught, with so many steps around: as in Django, each
    makes a response of what the one inside of it could not. Gives how many are left.
    """
    if not around:
        raise exc
    try:
        convert = sync_to_async(response_for_exception, thread_sensitive=False)
        return await convert(request, exc), around
    except Exception as another:  # noqa: BLE001
        return await response_of(request, another, around - 1)


class InlineViewHooks(BaseHandler):
    def adapt_method_mode(
        self, is_async: bool, method: Any, *args: Any, **kw: Any
    ) -> Any:
        hooks = _installed.get(type(getattr(method, "__self__", None)))
        if (
            is_async
            and hooks
            and hooks.process_view
            and method.__name__ == "process_view"
        ):
            return hooks.process_view(method.__self__)
        return super().adapt_method_mode(is_async, method, *args, **kw)
