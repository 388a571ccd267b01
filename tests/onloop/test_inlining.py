"""Django's own middleware gives the same responses on the loop as in threads."""

import asyncio
import functools
import itertools
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import django
import pytest
from asgiref.sync import markcoroutinefunction
from django.contrib.sessions.models import Session
from django.core.cache.backends.locmem import LocMemCache
from django.core.handlers import exception
from django.core.handlers.asgi import ASGIHandler as DjangoASGIHandler
from django.db import connections
from django.http import HttpResponse
from django.middleware.clickjacking import XFrameOptionsMiddleware
from django.middleware.common import CommonMiddleware
from django.middleware.csrf import CsrfViewMiddleware
from django.middleware.security import SecurityMiddleware
from django.test import Client, RequestFactory
from django.utils.deprecation import MiddlewareMixin
from django.utils.functional import SimpleLazyObject
from django.utils.module_loading import import_string
from django.utils.translation import trans_real
from onloop import inlining
from onloop.handler import ASGIHandler

from . import views
from .conftest import Answer, Count, fetch

# New in Django 6.0.
HAS_CSP = django.VERSION >= (6,)
SECRET = "s" * 32
TOKEN = {"cookie": f"csrftoken={SECRET}", "x-csrftoken": SECRET}
FORM = {"content-type": "application/x-www-form-urlencoded"}
JSON = {"content-type": "application/json"}
SESSIONS = "django.contrib.sessions.backends."
MESSAGES = "django.contrib.messages.storage."
LOCALE = "django.middleware.locale.LocaleMiddleware"
GZIP = "django.middleware.gzip.GZipMiddleware"
CONDITIONAL = "django.middleware.http.ConditionalGetMiddleware"
LOGIN = "django.contrib.auth.middleware.LoginRequiredMiddleware"
CSP = "django.middleware.csp.ContentSecurityPolicyMiddleware"


class Request(NamedTuple):
    status: int
    path: str = "/"
    method: str = "GET"
    body: bytes = b""
    headers: dict[str, str] = {}  # noqa: RUF012
    scheme: str = "http"


class Scenario(NamedTuple):
    name: str
    requests: list[Request]
    settings: dict[str, Any] = {}  # noqa: RUF012
    more: str = ""


def written_and_read(name: str, prefix: str = "/session", **settings: Any) -> Scenario:
    dos = "write", "read", "flush", "read"
    return Scenario(name, [Request(200, f"{prefix}/{do}/") for do in dos], settings)


def messages_shown(name: str, **settings: Any) -> Scenario:
    paths = "/message/add/", "/", "/message/read/", "/message/read/"
    return Scenario(name, [Request(200, path) for path in paths], settings)


SCENARIOS = [
    Scenario("plain", [Request(200)]),
    Scenario("head", [Request(200, method="HEAD")]),
    Scenario("https redirect", [Request(301)], {"SECURE_SSL_REDIRECT": True}),
    Scenario(
        "hsts",
        [Request(200, scheme="https"), Request(200)],
        {"SECURE_HSTS_SECONDS": 60, "SECURE_HSTS_INCLUDE_SUBDOMAINS": True},
    ),
    Scenario("wrong host", [Request(400, headers={"host": "elsewhere"})]),
    Scenario("error", [Request(500, "/error/")]),
    Scenario("body", [Request(200, "/body/"), Request(200, "/body/", body=b"1234")]),
    Scenario("not found", [Request(404, "/nowhere/")]),
    Scenario("slash appended", [Request(301, "/slash?a=b")]),
    Scenario("slash not appended", [Request(404, "/nowhere")]),
    Scenario("www prepended", [Request(301, "/slash")], {"PREPEND_WWW": True}),
    Scenario("clickjacking", [Request(200), Request(200, "/framed/")]),
    Scenario("csrf cookie set", [Request(200, "/form/")]),
    Scenario("csrf cookie kept", [Request(200, "/form/", headers=TOKEN)]),
    Scenario(
        "csrf accepted by header",
        [Request(200, "/form/", "POST", b"{}", TOKEN | JSON)],
    ),
    Scenario(
        "csrf accepted by form",
        [
            Request(
                200,
                "/form/",
                "POST",
                f"csrfmiddlewaretoken={SECRET}".encode(),
                {"cookie": f"csrftoken={SECRET}"} | FORM,
            )
        ],
    ),
    Scenario("csrf put accepted", [Request(200, "/form/", "PUT", b"", TOKEN)]),
    Scenario("csrf refused without cookie", [Request(403, "/form/", "POST")]),
    Scenario("csrf put refused", [Request(403, "/form/", "PUT")]),
    Scenario(
        "csrf refused by origin",
        [Request(403, "/form/", "POST", headers=TOKEN | {"origin": "https://a.b"})],
    ),
    Scenario(
        "csrf refused by referer",
        [Request(403, "/form/", "POST", b"", TOKEN, "https")],
    ),
    Scenario("csrf exempt", [Request(200, "/upload/", "POST", b"1234", FORM)]),
    Scenario(
        "csrf in session",
        [Request(200, "/form/"), Request(403, "/form/", "POST")],
        {"CSRF_USE_SESSIONS": True},
    ),
    written_and_read("session in db"),
    written_and_read("session in cache", SESSION_ENGINE=SESSIONS + "cache"),
    written_and_read("session in cached db", SESSION_ENGINE=SESSIONS + "cached_db"),
    # The asynchronous methods of this session engine read files on the loop.
    written_and_read(
        "session in file", "/session/sync", SESSION_ENGINE=SESSIONS + "file"
    ),
    written_and_read("session signed", SESSION_ENGINE=SESSIONS + "signed_cookies"),
    written_and_read("session always saved", SESSION_SAVE_EVERY_REQUEST=True),
    written_and_read("session until closed", SESSION_EXPIRE_AT_BROWSER_CLOSE=True),
    # A hook raises inside another one, which has to see the resulting response; so does
    # "wrong host" on the way in.
    Scenario(
        "session lost",
        [Request(200, "/session/write/"), Request(400, "/session/lose/")],
    ),
    Scenario(
        "unknown session",
        [Request(200, "/session/read/", headers={"cookie": "sessionid=" + "u" * 32})],
    ),
    messages_shown("messages"),
    messages_shown(
        "messages in session", MESSAGE_STORAGE=MESSAGES + "session.SessionStorage"
    ),
    messages_shown(
        "messages in cookie", MESSAGE_STORAGE=MESSAGES + "cookie.CookieStorage"
    ),
    Scenario(
        "languages",
        [Request(200, headers={"accept-language": "de"}), Request(404, "/nowhere/")],
        more=LOCALE,
    ),
    Scenario(
        "compressed",
        [
            Request(200, "/large/", headers={"accept-encoding": "gzip"}),
            Request(200, "/large/"),
            Request(200, headers={"accept-encoding": "gzip"}),
        ],
        more=GZIP,
    ),
    Scenario(
        "etag",
        [
            Request(200, "/large/"),
            Request(200),
        ],
        more=CONDITIONAL,
    ),
    Scenario(
        "login required",
        [Request(302, "/"), Request(200, "/public/")],
        more=LOGIN,
    ),
]


def empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


async def converse(application: Any, scenario: Scenario) -> list[Any]:
    jar: dict[str, str] = {}
    answers = []
    for status, path, method, body, headers, scheme in scenario.requests:
        cookies = "; ".join(f"{name}={value}" for name, value in jar.items())
        if cookies:
            headers = {"cookie": cookies} | headers
        answer = await fetch(application, path, method, body, headers, scheme)
        assert answer.status == status
        remember(jar, answer)
        answers.append((answer.headers, answer.body))
    return answers


def remember(jar: dict[str, str], answer: Answer) -> None:
    for header in answer.header("set-cookie"):
        name, _, rest = header.partition("=")
        jar[name] = rest.split(";")[0]


@pytest.fixture
def predictable(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Freeze the time and the random sequence."""

    def restart() -> None:
        numbers = itertools.count()

        def random_string(length: int, *args: Any, **kwargs: Any) -> str:
            return f"{next(numbers):0{length}d}"

        for module in ("middleware.csrf", "contrib.sessions.backends.base"):
            monkeypatch.setattr(f"django.{module}.get_random_string", random_string)

    monkeypatch.setattr("django.utils.text.secrets.randbelow", lambda below: 1)
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.0)
    return restart


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
async def test_responses_are_identical_to_stock(
    scenario: Scenario,
    predictable: Any,
    settings: Any,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Otherwise stock Django's thread would end with its connection open.
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", 0)
    settings.SESSION_FILE_PATH = str(tmp_path)
    for name, value in scenario.settings.items():
        setattr(settings, name, value)
    if scenario.more:
        settings.MIDDLEWARE = [*settings.MIDDLEWARE, scenario.more]

    predictable()
    expected = await converse(DjangoASGIHandler(), scenario)
    await Session.objects.all().adelete()
    await asyncio.to_thread(empty, tmp_path)
    predictable()
    handler = ASGIHandler()
    answers = await converse(handler, scenario)
    await handler.threads.shutdown()
    assert answers == expected


@pytest.mark.parametrize("failures", [1, 2])
async def test_response_that_cannot_be_made_of_an_exception_is_made_further_out(
    monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    make = exception.response_for_exception
    left = 0

    def failing(request: Any, exc: Exception) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            raise RuntimeError
        return make(request, exc)

    monkeypatch.setattr(exception, "response_for_exception", failing)
    answers = []
    for handler in (DjangoASGIHandler, ASGIHandler):
        left = failures
        answer = await fetch(handler(), headers={"host": "elsewhere"})
        answers.append((answer.status, answer.headers, answer.body))
    assert answers[0] == answers[1]
    assert answers[0][0] == 500


def wrapped(get_response: Any) -> Any:
    """A middleware that wraps one of Django's."""
    inner: Any = CommonMiddleware(get_response)

    @functools.wraps(inner)
    async def between(request: Any) -> Any:
        views.events.append("between")
        return await inner(request)

    return between


wrapped.async_capable = True  # type: ignore[attr-defined]


async def test_code_between_two_middlewares_runs(settings: Any) -> None:
    settings.MIDDLEWARE = [
        "django.middleware.security.SecurityMiddleware",
        f"{__name__}.wrapped",
        "django.middleware.clickjacking.XFrameOptionsMiddleware",
    ]
    answer = await fetch(ASGIHandler())
    assert answer.header("x-content-type-options") == ["nosniff"]
    assert answer.header("x-frame-options") == ["DENY"]
    assert views.events == ["between"]


class Wrapping:
    """Wraps a middleware as Sentry does."""

    sync_capable = False
    async_capable = True

    def __init__(self, get_response: Any) -> None:
        self._inner: Any = SecurityMiddleware(get_response)
        markcoroutinefunction(self)

    async def __call__(self, request: Any) -> Any:
        return await self._inner(request)


async def test_middleware_in_an_instrumentation_stays_on_the_loop(
    settings: Any, count: Count
) -> None:
    settings.MIDDLEWARE = [f"{__name__}.Wrapping"]
    answer = await fetch(ASGIHandler())
    assert answer.header("x-content-type-options") == ["nosniff"]
    assert count.hops == 0


class AnyAttribute:
    """Has every attribute, like a database of pymongo."""

    def __getattr__(self, name: str) -> Any:
        return AnyAttribute()


class Holding(Wrapping):
    """A middleware with attributes that are not middlewares."""

    def __init__(self, get_response: Any) -> None:
        super().__init__(get_response)
        self.database = AnyAttribute()
        self.lazy = SimpleLazyObject(self.unavailable)

    def unavailable(self) -> None:
        raise AssertionError("It was looked into.")


async def test_other_objects_in_a_middleware_are_left_alone(settings: Any) -> None:
    settings.MIDDLEWARE = [f"{__name__}.Holding"]
    handler = ASGIHandler()
    assert (await fetch(handler)).status == 200
    assert handler.abort_hooks == []


async def test_each_call_of_a_middleware_is_made_once_somebody_replaced_it(
    settings: Any, count: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, called = MiddlewareMixin.__call__, []

    @functools.wraps(call)
    def replacement(self: Any, request: Any) -> Any:
        called.append(type(self))
        return call(self, request)

    monkeypatch.setattr(MiddlewareMixin, "__call__", replacement)
    assert (await fetch(ASGIHandler())).status == 200
    assert called == [import_string(path) for path in settings.MIDDLEWARE]
    assert count.hops == 0


async def test_etag_of_a_small_response_matches_without_a_thread(
    settings: Any, count: Count
) -> None:
    settings.MIDDLEWARE = [CONDITIONAL]
    etag = (await fetch(ASGIHandler())).header("etag")[0]
    answer = await fetch(ASGIHandler(), headers={"if-none-match": etag})
    assert (answer.status, count.hops) == (304, 0)


async def test_large_response_is_compressed_in_a_thread(
    settings: Any, count: Count
) -> None:
    settings.MIDDLEWARE = [GZIP]
    await fetch(ASGIHandler(), "/large/", headers={"accept-encoding": "gzip"})
    assert count.hops == 1


if HAS_CSP:

    async def test_content_security_policy_is_added_without_a_thread(
        settings: Any, count: Count
    ) -> None:
        settings.MIDDLEWARE = [CSP]
        settings.SECURE_CSP = {"default-src": ["'self'"]}
        answer = await fetch(ASGIHandler())
        assert answer.header("content-security-policy") == ["default-src 'self'"]
        assert count.hops == 0


async def test_languages_of_the_project_need_no_thread(
    settings: Any, count: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.MIDDLEWARE = [LOCALE]
    settings.LANGUAGES = [("en", "English"), ("de", "German")]
    monkeypatch.setattr(trans_real, "_translations", {})
    handler = await asyncio.to_thread(ASGIHandler)
    for language in ("de", "en"):
        await fetch(handler, headers={"accept-language": language})
    assert count.hops == 0


async def test_languages_not_loaded_go_to_a_thread(
    settings: Any, count: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.MIDDLEWARE = [LOCALE]
    settings.LANGUAGES = [("en", "English"), ("de", "German")]
    handler = await asyncio.to_thread(ASGIHandler)
    monkeypatch.setattr(trans_real, "_translations", {})
    await fetch(handler, headers={"accept-language": "de"})
    await handler.threads.shutdown()
    assert count.hops == 1


async def test_anonymous_visitor_is_sent_to_log_in_without_a_thread(
    settings: Any, count: Count
) -> None:
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, LOGIN]
    answer = await fetch(ASGIHandler())
    assert (answer.status, count.hops) == (302, 0)


@pytest.mark.django_db(transaction=True)
async def test_session_is_looked_up_in_a_thread_for_required_login(
    settings: Any, count: Count
) -> None:
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, LOGIN]
    handler = ASGIHandler()
    await fetch(handler, headers={"cookie": "sessionid=" + "u" * 32})
    await handler.threads.shutdown()
    assert count.hops == 1


@pytest.mark.django_db(transaction=True)
async def test_modified_session_is_saved_in_a_thread(
    handler: ASGIHandler, count: Count
) -> None:
    await fetch(handler, "/session/write/")
    assert count.hops == 1


class OpensFiles(LocMemCache):
    """A cache backend that may block, like that of diskcache."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        Threads.names.append(threading.current_thread().name)


async def test_cache_of_sessions_that_is_not_djangos_is_made_in_a_thread(
    settings: Any,
) -> None:
    Threads.names.clear()
    settings.SESSION_ENGINE = SESSIONS + "cache"
    settings.CACHES = {"default": {"BACKEND": f"{__name__}.OpensFiles"}}
    await fetch(ASGIHandler())
    assert Threads.names[0].startswith("request")


async def test_stored_messages_go_to_a_thread(
    handler: ASGIHandler, count: Count
) -> None:
    await fetch(handler, "/message/add/")
    assert count.hops == 1


async def test_posted_form_is_parsed_in_a_thread(
    handler: ASGIHandler, count: Count
) -> None:
    await fetch(handler, "/form/", "POST", b"a=b", TOKEN | FORM)
    assert count.hops == 1


class Threads:
    """Where the hooks of a subclass ran."""

    names: list[str] = []  # noqa: RUF012


class Overriding(XFrameOptionsMiddleware):
    def get_xframe_options_value(self, request: Any, response: Any) -> str:
        Threads.names.append(threading.current_thread().name)
        return "SAMEORIGIN"


async def test_subclass_stays_in_its_thread(
    settings: Any, handler: ASGIHandler
) -> None:
    Threads.names.clear()
    settings.MIDDLEWARE = [f"{__name__}.Overriding"]
    answer = await fetch(ASGIHandler())
    assert answer.header("x-frame-options") == ["SAMEORIGIN"]
    assert Threads.names[0].startswith("request")


class OverridingView(CsrfViewMiddleware):
    def process_view(self, request: Any, *args: Any) -> None:
        Threads.names.append(threading.current_thread().name)


async def test_process_view_of_a_subclass_stays_in_its_thread(
    settings: Any, handler: ASGIHandler
) -> None:
    Threads.names.clear()
    settings.MIDDLEWARE = [f"{__name__}.OverridingView"]
    await fetch(ASGIHandler())
    assert Threads.names[0].startswith("request")


def own_acall() -> type:
    class Own(MiddlewareMixin):
        async def __acall__(self, request: Any) -> Any:
            return await self.get_response(request)  # type: ignore[misc]

    return Own


def own_async_hook() -> type:
    class Own(MiddlewareMixin):
        async def process_response(self, request: Any, response: Any) -> Any:
            return response

    Own.process_response.__module__ = "django.middleware.clickjacking"
    return Own


def patched_hook() -> type:
    class Own(MiddlewareMixin):
        def process_response(self, request: Any, response: Any) -> Any:
            return response

    return Own


def wrapped_hook() -> type:
    class Own(MiddlewareMixin):
        @functools.wraps(XFrameOptionsMiddleware.process_response)
        def process_response(self, request: Any, response: Any) -> Any:
            return response

    return Own


@pytest.mark.parametrize(
    "make", [own_acall, own_async_hook, patched_hook, wrapped_hook]
)
def test_unknown_class_is_not_inlined(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = make()
    hooks = inlining.Hooks(None, inlining.never_blocks)
    monkeypatch.setitem(inlining.HOOKS, f"{cls.__module__}.{cls.__qualname__}", hooks)
    assert inlining.hooks_of(cls) is None


@pytest.mark.parametrize(
    "path", [path for path in inlining.HOOKS if HAS_CSP or "csp" not in path]
)
def test_hooks_are_those_that_django_has(path: str) -> None:
    assert inlining.hooks_of(import_string(path))


def test_sync_client_takes_the_sync_chain(client: Client) -> None:
    assert client.get("/").headers["X-Frame-Options"] == "DENY"


def test_sync_chain_still_refuses_a_forged_post() -> None:
    client = Client(enforce_csrf_checks=True)
    assert client.post("/form/").status_code == 403


def test_hooks_called_directly_are_synchronous() -> None:
    async def respond(request: Any) -> HttpResponse:
        return HttpResponse()

    middleware: Any = CsrfViewMiddleware(respond)
    request = RequestFactory().post("/")
    assert middleware.process_view(request, respond, (), {}).status_code == 403
