"""Each mistake is reported under its id, and nothing is reported without one."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.core.checks import CheckMessage
from django.core.checks.registry import registry
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import async_only_middleware, sync_and_async_middleware
from django.utils.deprecation import MiddlewareMixin
from pytest_django import Settings

from serving import checks

ROOT = Path(__file__).parent.parent
Report = Callable[..., list[CheckMessage]]
POSTGRESQL: dict[str, Any] = {"ENGINE": "django.db.backends.postgresql"}


class Middleware:
    async_capable = True
    sync_capable = False

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        markcoroutinefunction(self)  # type: ignore[type-var]


class Unflagged:
    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        response: HttpResponse = await self.get_response(request)
        response["X-Tutorial"] = "1"
        return response


class Unmarked(Unflagged):
    async_capable = True
    sync_capable = False


class UnmarkedAgain(Middleware, Unmarked):
    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    __call__ = Unflagged.__call__


class Marked(Middleware):
    async def __call__(self, request: HttpRequest) -> HttpResponse:
        response: HttpResponse = await self.get_response(request)
        response["X-Good"] = "1"
        return response


class SyncCall(Middleware):
    def __call__(self, request: HttpRequest) -> HttpResponse:
        response: HttpResponse = self.get_response(request)
        response["X-Bad"] = "1"
        return response


class SyncAnswer(Middleware):
    def __call__(self, request: HttpRequest) -> HttpResponse:
        if "secret" in request.path:
            return HttpResponse(status=403)
        return self.get_response(request)  # type: ignore[no-any-return]


class PassesOn(Middleware):
    def __call__(self, request: HttpRequest) -> Any:
        return self.get_response(request)


class Hybrid(Middleware):
    sync_capable = True

    def __call__(self, request: HttpRequest) -> Any:
        if iscoroutinefunction(self.get_response):
            return self.__acall__(request)
        response = self.get_response(request)
        response["X-Good"] = "1"
        return response

    async def __acall__(self, request: HttpRequest) -> HttpResponse:
        waiting = self.get_response(request)
        assert waiting is not None
        response: HttpResponse = await waiting
        response["X-Good"] = "1"
        return response


class Unawaited(Middleware):
    async def __call__(self, request: HttpRequest) -> HttpResponse:
        response: HttpResponse = self.get_response(request)
        response["X-Bad"] = "1"
        return response


class ReturnsCoroutine(Middleware):
    async def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)  # type: ignore[no-any-return]


class AsyncHook(MiddlewareMixin):
    async def process_request(self, request: HttpRequest) -> None:
        pass


class SyncOnly:
    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        time.sleep(0)
        return self.get_response(request)  # type: ignore[no-any-return]


class Mixed(MiddlewareMixin):
    def process_request(self, request: HttpRequest) -> None:
        pass

    def process_response(
        self, request: HttpRequest, response: HttpResponse
    ) -> HttpResponse:
        return response


class Hopping(Middleware):
    async def __call__(self, request: HttpRequest) -> HttpResponse:
        await sync_to_async(time.sleep)(0)
        return await self.get_response(request)  # type: ignore[no-any-return]


def sync_only(get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> Any:
        return get_response(request)

    return middleware


def undecorated(get_response: Any) -> Any:
    async def middleware(request: HttpRequest) -> Any:
        return await get_response(request)

    return middleware


@async_only_middleware
def decorated_sync(get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> Any:
        response = get_response(request)
        response["X-Bad"] = "1"
        return response

    return middleware


@async_only_middleware
def decorated_unawaited(get_response: Any) -> Any:
    async def middleware(request: HttpRequest) -> Any:
        response = get_response(request)
        response.headers["X-Bad"] = "1"
        return response

    return middleware


@sync_and_async_middleware
def both(get_response: Any) -> Any:
    async def asynchronous(request: HttpRequest) -> Any:
        return await get_response(request)

    def synchronous(request: HttpRequest) -> Any:
        response = get_response(request)
        response["X-Good"] = "1"
        return response

    return asynchronous if iscoroutinefunction(get_response) else synchronous


@pytest.fixture
def database(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Declare one at the other end of a connection, which nobody opens."""

    def database(**options: Any) -> None:
        monkeypatch.setitem(settings.DATABASES, "elsewhere", POSTGRESQL | options)

    return database


@pytest.fixture
def report(settings: Settings) -> Report:
    """What the checks say when these middlewares are the innermost."""

    def report(*middlewares: Any, deploy: bool = False) -> list[CheckMessage]:
        settings.MIDDLEWARE = [
            *settings.MIDDLEWARE,
            *(f"{__name__}.{getattr(m, '__name__', m)}" for m in middlewares),
        ]
        # Django's own would want the driver of each database that a test names.
        ours = [
            check
            for check in registry.get_checks(deploy)
            if check.__module__ == checks.__name__
        ]
        messages = [
            message
            for check in ours
            for message in check(app_configs=None, databases=None)
        ]
        # Django keeps the checks in a set.
        return sorted(messages, key=lambda message: str(message.id))

    return report


def ids(messages: list[CheckMessage]) -> list[str]:
    return [str(message.id).removeprefix("serving.") for message in messages]


def test_service_as_generated_has_no_message(report: Report) -> None:
    assert report() == []


@pytest.mark.parametrize(
    "middleware", [Marked, PassesOn, Hybrid, both], ids=lambda m: m.__name__
)
def test_middleware_that_stays_async_has_no_message(
    report: Report, middleware: Any
) -> None:
    assert report(middleware) == []


@pytest.mark.parametrize(
    ("middleware", "id"),
    [
        ("Nowhere", "E001"),
        (Unflagged, "E002"),
        (undecorated, "E002"),
        (Unmarked, "E003"),
        (UnmarkedAgain, "E003"),
        (SyncCall, "E004"),
        (SyncAnswer, "E004"),
        (decorated_sync, "E004"),
        (Unawaited, "E005"),
        (ReturnsCoroutine, "E005"),
        (decorated_unawaited, "E005"),
        (AsyncHook, "E006"),
        (SyncOnly, "W001"),
        (sync_only, "W001"),
        (Mixed, "W002"),
        (Hopping, "W002"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_mistake_is_reported_with_its_path_and_a_fix(
    report: Report, middleware: Any, id: str
) -> None:
    messages = report(middleware)
    assert id in ids(messages)
    message = messages[ids(messages).index(id)]
    path = f"{__name__}.{getattr(middleware, '__name__', middleware)}"
    assert f"'{path}'" in message.msg
    assert message.hint
    assert id == "E001" or path in message.hint


@pytest.mark.parametrize("middleware", [Unmarked, SyncCall, Unawaited])
def test_mistake_is_reported_once(report: Report, middleware: Any) -> None:
    assert len(report(middleware)) == 1


def test_async_middleware_around_a_sync_one_must_not_claim_to_be_sync(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Marked, "sync_capable", True)
    assert ids(report(Marked, SyncOnly)) == ["E002", "W001"]


def test_hops_of_each_request_are_counted(report: Report) -> None:
    one, two = report(Hopping, Mixed)
    assert "for the request: each request pays 1 thread hop of 3" in one.msg
    assert "for the request and for the response: each request pays 2" in two.msg


def test_synchronous_middlewares_side_by_side_share_a_hop(report: Report) -> None:
    outer, inner = report(sync_only, SyncOnly)
    assert "0 thread hops of 1" in outer.msg
    assert "1 thread hop of 1" in inner.msg


def test_middleware_may_be_synchronous_on_purpose(
    report: Report, settings: Settings
) -> None:
    settings.SYNC_MIDDLEWARE = [f"{__name__}.SyncOnly", f"{__name__}.Mixed"]
    assert report(SyncOnly, Mixed) == []


@pytest.mark.parametrize("header", ["X-Status", "X Status: OK", "X-Status: a\nb: c"])
def test_e007_malformed_response_header(
    report: Report, settings: Settings, header: str
) -> None:
    settings.MIDDLEWARE = ["serving.middleware.HeaderMiddleware"]
    settings.RESPONSE_HEADER = header
    [message] = report()
    assert message.id == "serving.E007"
    assert repr(header) in message.msg


def test_e008_unknown_condition(report: Report, settings: Settings) -> None:
    settings.MIDDLEWARE = ["serving.middleware.HeaderMiddleware"]
    settings.RESPONSE_HEADER_WHEN = "sometimes"
    [message] = report()
    assert message.id == "serving.E008"
    assert "status-200, success, always, never" in str(message.hint)


def test_e009_pool_with_persistent_connections(
    report: Report, database: Callable[..., None]
) -> None:
    pool = {"pool": {"max_size": 8}}
    database(OPTIONS=pool, CONN_MAX_AGE=60, CONN_HEALTH_CHECKS=True)
    assert ids(report()) == ["E009"]
    database(OPTIONS=pool)
    assert report() == []


def test_w003_log_and_timing_are_outermost(report: Report, settings: Settings) -> None:
    log, timing, *others = settings.MIDDLEWARE
    settings.MIDDLEWARE = [log, *others, timing]
    [message] = report()
    assert message.id == "serving.W003"
    assert timing in message.msg
    settings.MIDDLEWARE = [timing, *others]
    assert report() == []


def test_w004_header_is_outside_of_the_cache(
    report: Report, settings: Settings
) -> None:
    cache = "django.middleware.cache.UpdateCacheMiddleware"
    log, timing, header = (
        f"serving.middleware.{name}Middleware" for name in ("Log", "Timing", "Header")
    )
    others = [path for path in settings.MIDDLEWARE if path.startswith("django.")]
    settings.SYNC_MIDDLEWARE = [cache]
    settings.MIDDLEWARE = [log, timing, header, cache, *others]
    assert report() == []
    settings.MIDDLEWARE = [log, timing, cache, header, *others]
    [message] = report()
    assert message.id == "serving.W004"
    assert cache in str(message.hint)


def test_w005_server_timing_for_everybody(report: Report, settings: Settings) -> None:
    settings.DEBUG = False
    settings.SERVER_TIMING = "always"
    assert report() == []
    assert ids(report(deploy=True)) == ["W005"]
    settings.SERVER_TIMING = "debug"
    assert report(deploy=True) == []


@pytest.mark.parametrize(
    ("options", "id"),
    [
        ({"CONN_MAX_AGE": 0}, "W006"),
        ({"CONN_MAX_AGE": 60}, "W007"),
        ({"OPTIONS": {"pool": True}}, "W008"),
        ({"OPTIONS": {"pool": {"timeout": 3}}}, "W008"),
    ],
)
def test_connections_that_fight_the_threads(
    report: Report, database: Callable[..., None], options: dict[str, Any], id: str
) -> None:
    database(**options)
    [message] = report()
    assert message.id == f"serving.{id}"
    assert "DATABASES['elsewhere']" in message.msg


def test_readme_explains_every_id() -> None:
    source = Path(checks.__file__).read_text(encoding="utf-8")
    declared = re.findall(r'id="(serving\.[EW]\d{3})"', source)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(serving\.\w+)`", readme, re.MULTILINE) == sorted(declared)
