"""Each thread hop of a request is counted, for the middleware that caused it."""

import asyncio
import contextvars
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import AsyncToSync, SyncToAsync, async_to_sync, sync_to_async
from django.contrib.auth.models import User
from django.contrib.messages.storage.cookie import CookieStorage
from django.contrib.sessions.backends.file import SessionStore as FileSession
from django.contrib.sessions.models import Session
from django.core.handlers.asgi import ASGIHandler as DjangoASGIHandler
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path
from onloop.measure import Measurement, ThreadHop, count_thread_hops, measure
from pytest_django import Settings

from .conftest import fetch, until
from .middlewares import work

pytestmark = pytest.mark.urls(__name__)

MIDDLEWARES = "tests.onloop.middlewares"
SECURITY = "django.middleware.security.SecurityMiddleware"
SESSIONS = "django.contrib.sessions.middleware.SessionMiddleware"

seen: list[Any] = []


async def asynchronous(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


def synchronous(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


def bridging(request: HttpRequest) -> HttpResponse:
    return async_to_sync(asynchronous)(request)


async def orm(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(await User.objects.acount()))


async def gathering(request: HttpRequest) -> HttpResponse:
    await asyncio.gather(*(sync_to_async(work)() for _ in range(3)))
    return HttpResponse()


async def partially(request: HttpRequest) -> HttpResponse:
    await sync_to_async(functools.partial(work))()
    return HttpResponse()


async def detached(request: HttpRequest) -> HttpResponse:
    # No frame outside of the task belongs to this request.
    await asyncio.create_task(User.objects.acount())
    return HttpResponse()


async def failing(request: HttpRequest) -> HttpResponse:
    raise ArithmeticError("on purpose")


async def save(request: HttpRequest) -> HttpResponse:
    await request.session.aset("colour", "green")
    return HttpResponse()


async def lose(request: HttpRequest) -> HttpResponse:
    await request.session.acreate()
    await request.session.aset("colour", "red")
    await Session.objects.all().adelete()
    return HttpResponse()


async def echo(request: HttpRequest, name: str) -> HttpResponse:
    seen.append((request.scheme, request.get_host(), name, request.GET.dict()))
    return HttpResponse()


async def endless(request: HttpRequest) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[str]:
        try:
            while True:
                yield "part"
                await asyncio.sleep(0)
        finally:
            seen.append("closed")

    return StreamingHttpResponse(parts())


async def numbers(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(map(str, range(3)))


class OwnStorage(CookieStorage):
    pass


urlpatterns = [
    path("", asynchronous),
    path("sync/", synchronous),
    path("bridging/", bridging),
    path("orm/", orm),
    path("gathering/", gathering),
    path("partially/", partially),
    path("detached/", detached),
    path("lose/", lose),
    path("failing/", failing),
    path("save/", save),
    path("echo/<name>/", echo),
    path("endless/", endless),
    path("numbers/", numbers),
]


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    seen.clear()
    yield
    seen.clear()


@pytest.fixture
def insert(settings: Settings) -> Callable[..., list[str]]:
    """Insert these between Django's middlewares; return their paths."""

    def insert(place: int, *names: str) -> list[str]:
        paths = [f"{MIDDLEWARES}.{name}" for name in names]
        chain = [*settings.MIDDLEWARE]
        chain[place:place] = paths
        settings.MIDDLEWARE = chain
        return paths

    return insert


def hopping(measurement: Measurement) -> dict[str, list[str]]:
    """What was called in a thread, by middleware."""
    assert all(hop.where for hop in measurement.thread_hops)
    rows = [*measurement.middleware, ("other", "", measurement.other)]
    return {name: [hop.what for hop in hops] for name, _, hops in rows if hops}


def wheres(hops: list[ThreadHop]) -> list[str]:
    return [hop.where.rpartition(" in ")[2] for hop in hops]


def executions(measurement: Measurement) -> dict[str, str]:
    return {each.path: each.execution for each in measurement.middleware}


async def test_async_view_makes_no_hop(settings: Settings) -> None:
    measurement = await measure()
    assert (measurement.path, measurement.status) == ("/", 200)
    assert measurement.thread_hops == measurement.other == []
    assert executions(measurement) == dict.fromkeys(settings.MIDDLEWARE, "inlined")


async def test_stock_django_makes_fifteen() -> None:
    with count_thread_hops() as hops:
        assert (await fetch(DjangoASGIHandler())).status == 200
    assert len(hops) == 15


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("path", "expected", "where"),
    [
        ("/sync/", [f"{__name__}.synchronous"], ["_get_response_async"]),
        (
            "/bridging/",
            [f"{__name__}.bridging", f"async_to_sync({__name__}.asynchronous)"],
            ["_get_response_async", "bridging"],
        ),
        ("/orm/", ["django.db.models.query.QuerySet.count"], ["orm"]),
        ("/partially/", [f"{MIDDLEWARES}.work"], ["partially"]),
        ("/detached/", ["django.db.models.query.QuerySet.count"], ["acount"]),
        ("/gathering/", [f"{MIDDLEWARES}.work"] * 3, ["<genexpr>"] * 3),
        pytest.param(
            "/numbers/",
            ["list"],
            ["__aiter__"],
            marks=pytest.mark.filterwarnings("ignore:StreamingHttpResponse must"),
        ),
    ],
)
async def test_hops_of_the_view_belong_to_no_middleware(
    path: str, expected: list[str], where: list[str]
) -> None:
    measurement = await measure(path)
    assert measurement.status == 200
    assert hopping(measurement) == {"other": expected}
    assert wheres(measurement.other) == where


async def test_hop_of_a_view_tells_its_line() -> None:
    [hop] = (await measure("/sync/")).other
    assert hop.where.startswith("django/core/handlers/base.py:")
    [hop, *_] = (await measure("/gathering/")).other
    line = gathering.__code__.co_firstlineno + 1
    assert hop.where == f"tests/onloop/test_measure.py:{line} in <genexpr>"


@pytest.mark.parametrize("place", [0, 4, 7])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "Mixed",
            [f"{MIDDLEWARES}.Mixed.process_{when}" for when in ("request", "response")],
        ),
        (
            "Bridging",
            [
                f"{MIDDLEWARES}.Bridging.process_request",
                f"async_to_sync({MIDDLEWARES}.nothing)",
            ],
        ),
        ("ViewHook", [f"{MIDDLEWARES}.ViewHook.process_view"]),
        ("HoppingViewHook", [f"{MIDDLEWARES}.work"]),
        ("Hopping", [f"{MIDDLEWARES}.work"] * 2),
        ("hopping", [f"{MIDDLEWARES}.work"]),
        ("Marked", []),
        ("Hybrid", []),
        ("both", []),
    ],
)
async def test_hops_of_a_middleware_are_its_own(
    insert: Callable[..., list[str]], place: int, name: str, expected: list[str]
) -> None:
    [path] = insert(place, name)
    measurement = await measure()
    assert measurement.status == 200
    assert hopping(measurement) == ({path: expected} if expected else {})


async def test_hop_of_a_middleware_tells_its_line(
    insert: Callable[..., list[str]],
) -> None:
    insert(0, "Hopping")
    direct, by_helper = (await measure()).thread_hops
    assert direct.where.startswith("tests/onloop/middlewares.py:")
    assert wheres([direct, by_helper]) == ["__call__", "hop"]


@pytest.mark.parametrize(
    ("path", "hops"),
    [
        ("django.contrib.auth.middleware.LoginRequiredMiddleware", 0),
        ("django.contrib.auth.middleware.RemoteUserMiddleware", 0),
        ("django.contrib.flatpages.middleware.FlatpageFallbackMiddleware", 0),
        ("django.contrib.redirects.middleware.RedirectFallbackMiddleware", 0),
        ("django.contrib.sites.middleware.CurrentSiteMiddleware", 1),
        ("django.middleware.cache.FetchFromCacheMiddleware", 1),
        ("django.middleware.cache.UpdateCacheMiddleware", 1),
        ("django.middleware.common.BrokenLinkEmailsMiddleware", 0),
        ("django.middleware.gzip.GZipMiddleware", 0),
        ("django.middleware.http.ConditionalGetMiddleware", 0),
        ("django.middleware.locale.LocaleMiddleware", 0),
    ],
)
@pytest.mark.django_db(transaction=True)
async def test_other_middleware_of_django(
    settings: Settings, path: str, hops: int
) -> None:
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, path]
    settings.LANGUAGES = [("en", "English"), ("fr", "French")]
    measurement = await measure()
    assert len(measurement.thread_hops) == hops
    assert {hop.middleware for hop in measurement.thread_hops} <= {path}
    threads = "on the loop" if "RemoteUser" in path else "inlined"
    assert executions(measurement)[path] == ("in a thread" if hops else threads)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"CSRF_USE_SESSIONS": True}, {"CsrfViewMiddleware": 1}),
        ({"PREPEND_WWW": True}, {"CommonMiddleware": 1}),
        ({"PREPEND_WWW": False, "APPEND_SLASH": False}, {}),
        (
            {"SESSION_ENGINE": "django.contrib.sessions.backends.file"},
            {"SessionMiddleware": 1},
        ),
        ({"SESSION_ENGINE": "django.contrib.sessions.backends.cache"}, {}),
        (
            {"MESSAGE_STORAGE": "tests.onloop.test_measure.OwnStorage"},
            {"MessageMiddleware": 1},
        ),
    ],
    ids=str,
)
async def test_settings_that_send_djangos_own_to_a_thread(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    expected: dict[str, int],
) -> None:
    # Looked up once in each process.
    monkeypatch.delattr(FileSession, "_storage_path", raising=False)
    for name, value in change.items():
        setattr(settings, name, value)
    found = hopping(await measure())
    assert {path.split(".")[-1]: len(hops) for path, hops in found.items()} == expected


@pytest.mark.parametrize("place", [0, 4, 7])
@pytest.mark.parametrize("name", ["SyncOnly", "sync_only"])
async def test_synchronous_middleware_hops_to_be_called_and_to_call(
    insert: Callable[..., list[str]], settings: Settings, place: int, name: str
) -> None:
    [path] = insert(place, name)
    measurement = await measure()
    [own] = hopping(measurement).items()
    assert (own[0], len(own[1])) == (path, 2)
    called = [*settings.MIDDLEWARE[place + 1 :], "django.core.handlers.base."][0]
    assert own[1][1].startswith(f"async_to_sync({called}")
    # Django's own middleware outside of it runs in its thread.
    outside, inside = settings.MIDDLEWARE[:place], settings.MIDDLEWARE[place + 1 :]
    assert executions(measurement) == {
        **dict.fromkeys(outside, "in a thread"),
        path: "in a thread",
        **dict.fromkeys(inside, "inlined"),
    }


async def test_synchronous_neighbours_share_the_hops_of_the_innermost(
    insert: Callable[..., list[str]],
) -> None:
    _, _, inner, _ = insert(7, "sync_only", "Hybrid", "SyncOnly", "Marked")
    [(path, hops)] = hopping(await measure()).items()
    assert (path, len(hops)) == (inner, 2)


async def test_async_middleware_between_synchronous_ones_hops_for_neither(
    insert: Callable[..., list[str]],
) -> None:
    outer, _, inner = insert(0, "sync_only", "Marked", "SyncOnly")
    measurement = await measure()
    assert {path: len(hops) for path, hops in hopping(measurement).items()} == {
        outer: 2,
        inner: 2,
    }


@pytest.mark.django_db(transaction=True)
async def test_inlined_middleware_hops_for_what_blocks() -> None:
    measurement = await measure("/save/")
    assert measurement.status == 200
    assert hopping(measurement) == {SESSIONS: [f"{SESSIONS}.process_response"]}


@pytest.mark.django_db(transaction=True)
async def test_hop_of_an_error_response_belongs_to_the_middleware_that_raised() -> None:
    measurement = await measure("/lose/")
    assert measurement.status == 400
    assert hopping(measurement)[SESSIONS] == [
        f"{SESSIONS}.process_response",
        "django.core.handlers.exception.response_for_exception",
    ]


async def test_hop_of_a_failing_views_response_belongs_to_no_middleware() -> None:
    measurement = await measure("/failing/")
    assert measurement.status == 500
    assert list(hopping(measurement)) == ["other"]


async def test_hop_of_an_exception_hook_belongs_to_its_middleware(
    insert: Callable[..., list[str]],
) -> None:
    [path] = insert(2, "ExceptionHook")
    expected = [f"async_to_sync({path}.process_exception)"]
    assert hopping(await measure("/failing/"))[path] == expected


async def test_middleware_that_is_not_used_is_shown_as_such(
    insert: Callable[..., list[str]],
) -> None:
    outer, unused, inner, _ = insert(3, "Mixed", "Unused", "ViewHook", "Unused")
    measurement = await measure()
    assert list(hopping(measurement)) == [outer, inner]
    assert executions(measurement)[unused] == "not used"


async def test_endless_stream_ends_after_its_first_part() -> None:
    async with asyncio.timeout(10):
        measurement = await measure("/endless/")
    assert (measurement.status, measurement.thread_hops) == (200, [])
    assert seen == ["closed"]


@pytest.mark.parametrize(
    ("allowed", "host"),
    [
        ([".example.com"], "example.com"),
        (["*", "api.example.com"], "api.example.com"),
        (["*"], "localhost"),
    ],
)
async def test_request_is_for_an_allowed_host(
    settings: Settings, allowed: list[str], host: str
) -> None:
    settings.ALLOWED_HOSTS = allowed
    await measure("/echo/a%20b/?colour=green%21")
    assert seen == [("http", host, "a b", {"colour": "green!"})]


async def test_request_is_not_redirected_to_https(settings: Settings) -> None:
    settings.SECURE_SSL_REDIRECT = True
    settings.ALLOWED_HOSTS = ["example.com"]
    assert (await measure("/echo/you/")).status == 200
    assert seen == [("https", "example.com", "you", {})]


async def test_redirect_is_not_followed() -> None:
    assert (await measure("/echo/you")).status == 301


@pytest.mark.django_db(transaction=True)
async def test_no_thread_stays_behind() -> None:
    before = set(threading.enumerate())
    assert len((await measure("/orm/")).thread_hops) == 1
    # asyncio keeps its executor's thread until the loop is closed.
    await until(
        lambda: (
            {
                thread.name.partition("_")[0]
                for thread in set(threading.enumerate()) - before
            }
            <= {"asyncio"}
        )
    )


async def test_middleware_may_block_when_it_is_made(
    insert: Callable[..., list[str]],
) -> None:
    insert(0, "Reading")
    assert (await measure()).status == 200


async def test_nothing_is_patched_before_or_after() -> None:
    calls = (SyncToAsync.__call__, AsyncToSync.__call__)
    with pytest.raises(ArithmeticError), count_thread_hops():
        assert SyncToAsync.__call__ is not calls[0]
        raise ArithmeticError
    assert (SyncToAsync.__call__, AsyncToSync.__call__) == calls


async def test_calls_give_what_they_would_without_being_counted() -> None:
    colour = contextvars.ContextVar("colour", default="none")

    async def paint(value: str) -> str:
        colour.set(value)
        return threading.current_thread().name

    with count_thread_hops() as hops:
        main = await sync_to_async(async_to_sync(paint))(value="green")
    assert (colour.get(), main) == ("green", threading.current_thread().name)
    assert [hop.what.partition("(")[0] for hop in hops] == [
        f"{__name__}.{paint.__qualname__}",
        "async_to_sync",
    ]


def test_outside_of_a_loop_too() -> None:
    assert asyncio.run(measure()).thread_hops == []
