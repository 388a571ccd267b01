"""When all threads are taken: requests wait, and are refused after a while."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any
from weakref import WeakSet

import pytest
from asgiref.sync import sync_to_async
from django.core.files.uploadedfile import TemporaryUploadedFile
from django.core.handlers import base
from django.core.handlers.asgi import ASGIHandler as DjangoASGIHandler
from django.core.signals import (
    got_request_exception,
    request_finished,
    request_started,
)
from django.http import HttpRequest, HttpResponse
from django.template import engines
from django.template.response import SimpleTemplateResponse
from django.urls import path
from django.utils.decorators import async_only_middleware
from django.utils.deprecation import MiddlewareMixin
from onloop import threads
from onloop.handler import ASGIHandler
from onloop.threads import NoThread, ThreadPool, thread_usage

from . import views
from .conftest import Answer, Conversation, fetch, until


@pytest.fixture
async def pool() -> AsyncIterator[ThreadPool]:
    pool = ThreadPool(limit=1)
    yield pool
    await pool.shutdown()


@asynccontextmanager
async def taken(pool: ThreadPool) -> AsyncIterator[None]:
    """The block runs while another request holds a thread."""
    with pool.thread():
        await ident()
        yield


ident = sync_to_async(threading.get_ident)


async def call(pool: ThreadPool, name: str = "") -> str:
    with pool.thread():
        await sync_to_async(views.events.append)(name)
    return name


async def waiting(pool: ThreadPool, count: int) -> None:
    await until(lambda: len(pool._waiting) == count)


async def test_requests_beyond_the_limit_wait_in_order(pool: ThreadPool) -> None:
    async with taken(pool):
        tasks = []
        for name in "abcde":
            tasks.append(asyncio.create_task(call(pool, name)))
            await waiting(pool, len(tasks))
        assert views.events == []
    await asyncio.gather(*tasks)
    assert views.events == list("abcde")
    assert len(pool._workers) == 1


async def test_usage_counts_threads_held_and_requests_that_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "_pools", WeakSet())
    first, second = ThreadPool(limit=1), ThreadPool(limit=2)
    assert thread_usage() == (0, 0)
    async with taken(first), taken(second):
        tasks = [asyncio.create_task(call(first)) for _ in range(3)]
        await waiting(first, 3)
        assert thread_usage() == (2, 3)
    await asyncio.gather(*tasks)
    # The threads are idle.
    await until(lambda: thread_usage() == (0, 0))
    await asyncio.gather(first.shutdown(), second.shutdown())


async def test_calls_of_a_request_that_waits_share_a_thread(pool: ThreadPool) -> None:
    async def request() -> list[int]:
        with pool.thread():
            return [await ident(), *await asyncio.gather(ident(), ident())]

    async with taken(pool):
        tasks = [asyncio.create_task(request()) for _ in range(3)]
        await waiting(pool, 3)
    idents = await asyncio.gather(*tasks)
    assert len({each for request in idents for each in request}) == 1


async def test_cancelled_request_leaves_the_queue(pool: ThreadPool) -> None:
    async with taken(pool):
        first = asyncio.create_task(call(pool, "first"))
        second = asyncio.create_task(call(pool, "second"))
        await waiting(pool, 2)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await waiting(pool, 1)
    assert await second == "second"
    assert views.events == ["second"]


async def test_thread_handed_to_a_request_just_cancelled_goes_to_the_next(
    pool: ThreadPool,
) -> None:
    async with taken(pool):
        first = asyncio.create_task(call(pool, "first"))
        second = asyncio.create_task(call(pool, "second"))
        await waiting(pool, 2)
        first.cancel()
        # Its call is cancelled in the iteration of the loop that releases the thread.
        await asyncio.sleep(0)
        assert len(pool._waiting) == 2
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await second == "second"
    await until(lambda: len(pool._idle) == 1)


async def test_thread_that_a_request_no_longer_needs_goes_to_the_others(
    pool: ThreadPool,
) -> None:
    worker = pool.acquire()
    assert worker is not None
    with pool.thread() as thread:
        thread.start(worker)
        assert list(pool._idle) == [worker]


async def test_task_that_outlives_a_request_waits_too(pool: ThreadPool) -> None:
    async with taken(pool):
        with pool.thread():
            task = asyncio.create_task(sync_to_async(threading.get_ident)())
            await waiting(pool, 1)
    assert await task
    await until(lambda: len(pool._idle) == 1)


async def test_request_that_waited_too_long_is_refused_and_the_next_served(
    pool: ThreadPool,
) -> None:
    pool.wait_seconds = 0.01
    async with taken(pool):
        with pytest.raises(NoThread, match="REQUEST_THREADS"):
            await call(pool)
        assert not pool._waiting
    assert await call(pool, "next") == "next"


async def test_other_loops_wait_for_the_same_threads(pool: ThreadPool) -> None:
    async with taken(pool):
        elsewhere = asyncio.create_task(
            asyncio.to_thread(lambda: asyncio.run(call(pool, "elsewhere")))
        )
        await waiting(pool, 1)
    assert await elsewhere == "elsewhere"


# A request that is refused is answered with 503.


def synchronous(get_response: Any) -> Any:
    return get_response


class Mixin(MiddlewareMixin):
    def process_request(self, request: HttpRequest) -> None:
        pass


class WithProcessException(MiddlewareMixin):
    def process_exception(self, request: HttpRequest, exception: Exception) -> None:
        pass

    async def __acall__(self, request: HttpRequest) -> Any:
        return await self.get_response(request)  # type: ignore[misc]


@async_only_middleware
def with_orm(get_response: Any) -> Any:
    async def middleware(request: HttpRequest) -> Any:
        await ident()
        return await get_response(request)

    return middleware


@async_only_middleware
def outermost(get_response: Any) -> Any:
    async def middleware(request: HttpRequest) -> Any:
        response = await get_response(request)
        response.headers["X-Seen"] = str(response.status_code)
        return response

    return middleware


@contextmanager
def connected(signal: Any, receiver: Any) -> Iterator[None]:
    signal.connect(receiver)
    yield
    signal.disconnect(receiver)


def receiver(**kwargs: Any) -> None:
    views.events.append(threading.current_thread().name)


class MayBlock(logging.Handler):
    """A handler that may block, so that onloop logs in a thread."""

    def emit(self, record: logging.LogRecord) -> None:
        pass


SYNC = f"{__name__}.synchronous"
MIXIN = f"{__name__}.Mixin"


@pytest.mark.parametrize(
    ("url", "more"),
    [
        ("/sync/", []),
        ("/thread/", []),
        # An inlined hook of Django that saves a session.
        ("/message/add/", []),
        ("/", [MIXIN]),
        ("/", [f"{__name__}.with_orm"]),
        # All middlewares around it are called synchronously too.
        ("/", [SYNC]),
        ("/sync/", [f"{__name__}.WithProcessException"]),
        # Outermost, where nothing converts exceptions to responses.
        ("/", [SYNC, "first"]),
        ("/", [MIXIN, "first"]),
    ],
)
async def test_refused_request_is_answered_with_503(
    settings: Any, caplog: pytest.LogCaptureFixture, url: str, more: list[str]
) -> None:
    outer = [f"{__name__}.outermost"]
    settings.MIDDLEWARE = (
        [*more[:1], *settings.MIDDLEWARE]
        if "first" in more
        else [*outer, *settings.MIDDLEWARE, *more]
    )
    settings.REQUEST_THREADS = 1
    handler = ASGIHandler()
    handler.threads.wait_seconds = 0.01
    with connected(got_request_exception, receiver):
        async with taken(handler.threads):
            answer = await fetch(handler, url)
    assert answer.status == 503
    assert answer.header("retry-after") == ["10"]
    assert answer.header("content-type") == ["text/plain"]
    unseen = "first" in more or SYNC in more
    assert answer.header("x-seen") == ([] if unseen else ["503"])
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "REQUEST_THREADS" in record.getMessage()
    assert record.getMessage().endswith(f": {url}")
    assert not record.exc_info
    assert views.events == []
    assert (await fetch(handler, url)).status == 200
    await handler.threads.shutdown()


def page(request: HttpRequest, exception: Exception) -> HttpResponse:
    views.events.append(f"{threading.current_thread().name} {type(exception).__name__}")
    return HttpResponse("Busy", status=503, headers={"Retry-After": "a view's"})


def template_response(request: HttpRequest, exception: Exception) -> HttpResponse:
    return SimpleTemplateResponse(engines["django"].from_string("Busy"), status=503)


def failing(request: HttpRequest, exception: Exception) -> HttpResponse:
    raise RuntimeError("the page fails")


async def refused(settings: Any, handler503: Any) -> Answer:
    settings.ROOT_URLCONF = __name__
    settings.REQUEST_THREADS = 1
    handler = ASGIHandler()
    handler.threads.wait_seconds = 0.01
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(f"{__name__}.handler503", handler503, raising=False)
        async with taken(handler.threads):
            answer = await fetch(handler, "/sync/")
    await handler.threads.shutdown()
    assert answer.status == 503
    assert answer.header("retry-after") == ["10"]
    return answer


@pytest.mark.parametrize("handler503", [page, f"{__name__}.page"])
async def test_refused_request_gets_the_page_of_handler503_on_the_loop(
    settings: Any, caplog: pytest.LogCaptureFixture, handler503: Any
) -> None:
    answer = await refused(settings, handler503)
    assert answer.body == b"Busy"
    assert answer.header("content-type") == ["text/html; charset=utf-8"]
    # Made by the middlewares.
    assert answer.header("x-frame-options") == ["DENY"]
    assert views.events == ["MainThread NoThread"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_handler503_may_return_a_template_response(settings: Any) -> None:
    assert (await refused(settings, template_response)).body == b"Busy"


async def test_handler503_that_fails_is_logged_and_replaced_by_plain_text(
    settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await refused(settings, failing)
    assert answer.body == b"Service Unavailable\n"
    assert answer.header("content-type") == ["text/plain"]
    error, warning = caplog.records
    assert (error.getMessage(), error.levelname) == ("handler503 failed", "ERROR")
    assert error.exc_info
    assert warning.levelname == "WARNING"


async def test_late_body_gets_the_page_of_handler504(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.ROOT_URLCONF = __name__
    settings.REQUEST_TIMEOUT = 0.01
    monkeypatch.setattr(f"{__name__}.handler504", page, raising=False)
    conversation = Conversation("/sync/", "POST")
    conversation.incoming.get_nowait()
    answer = await conversation.run(ASGIHandler())
    assert answer.body == b"Busy"
    assert answer.header("connection") == ["close"]
    assert views.events == ["MainThread LateBody"]


async def test_request_is_refused_if_no_thread_can_signal_its_start(
    settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.REQUEST_THREADS = 1
    settings.MIDDLEWARE = [f"{__name__}.outermost"]
    handler = ASGIHandler()
    handler.threads.wait_seconds = 0.01
    with connected(request_started, receiver):
        async with taken(handler.threads):
            answer = await fetch(handler)
    assert (answer.status, answer.header("x-seen")) == (503, ["503"])
    assert len(caplog.records) == 1
    await handler.threads.shutdown()


async def test_refused_request_waits_once(settings: Any) -> None:
    settings.REQUEST_THREADS = 1
    settings.MIDDLEWARE = [f"{__name__}.WithProcessException"]
    handler = ASGIHandler()
    async with taken(handler.threads):
        task = asyncio.create_task(fetch(handler, "/sync/"))
        await waiting(handler.threads, 1)
        handler.threads.wait_seconds = 1000
        [waiter] = handler.threads._waiting
        waiter._refuse()
        assert (await asyncio.wait_for(task, 10)).status == 503
    await handler.threads.shutdown()


@contextmanager
def no_thread_starts() -> Iterator[None]:
    """Make starting a thread fail, with a stack size that no system provides."""
    before = threading.stack_size(2**46)
    try:
        yield
    finally:
        threading.stack_size(before)


@pytest.mark.parametrize("url", ["/sync/", "/thread/", "/message/add/"])
async def test_request_for_which_no_thread_starts_is_answered_with_503(
    handler: ASGIHandler, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    may_block = MayBlock()
    logging.getLogger("django.request").addHandler(may_block)
    with no_thread_starts(), connected(request_finished, receiver):
        answer = await fetch(handler, url)
    logging.getLogger("django.request").removeHandler(may_block)
    assert answer.status == 503
    [record] = caplog.records
    assert "can't start new thread" in record.getMessage()
    # On the loop, because there is no other thread.
    assert views.events == ["MainThread"]
    assert not handler.threads._workers
    assert (await fetch(handler, url)).status == 200


async def test_instrumentation_around_a_link_of_the_chain_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    convert: Any = base.convert_exception_to_response  # type: ignore[attr-defined]

    def traced(get_response: Any) -> Any:
        inner = convert(get_response)

        async def outer(request: HttpRequest) -> Any:
            views.events.append("traced")
            return await inner(request)

        return outer

    monkeypatch.setattr(base, "convert_exception_to_response", traced)
    counts = []
    for handler in (DjangoASGIHandler(), ASGIHandler()):
        views.events.clear()
        assert (await fetch(handler)).status == 200
        counts.append(len(views.events))
    assert counts == [8, 8]


# The end of a request.


async def upload(request: HttpRequest) -> HttpResponse:
    files = await asyncio.to_thread(lambda: request.FILES)
    uploads.append(files["file"])
    return HttpResponse("stored")


uploads: list[Any] = []
urlpatterns = [
    path("", views.hello),
    path("sync/", views.synchronous),
    path("upload/", upload),
]
handler404 = views.not_found


async def test_request_without_a_thread_closes_its_files_while_all_are_taken(
    settings: Any,
) -> None:
    settings.REQUEST_THREADS = 1
    settings.ROOT_URLCONF = __name__
    settings.MIDDLEWARE = []
    settings.FILE_UPLOAD_MAX_MEMORY_SIZE = 1
    handler = ASGIHandler()
    body = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        b"content\r\n--x--\r\n"
    )
    conversation = Conversation(
        "/upload/",
        "POST",
        body,
        {
            "content-type": "multipart/form-data; boundary=x",
            "content-length": str(len(body)),
        },
    )
    async with taken(handler.threads), asyncio.timeout(10):
        await conversation.run(handler)
        [file] = uploads
        assert isinstance(file, TemporaryUploadedFile)
        assert file.closed
    uploads.clear()
    await handler.shutdown()


async def test_receivers_of_request_finished_run_while_all_threads_are_taken(
    settings: Any,
) -> None:
    settings.REQUEST_THREADS = 1
    handler = ASGIHandler()
    handler.threads.wait_seconds = 0.01
    with connected(request_finished, receiver):
        async with taken(handler.threads), asyncio.timeout(10):
            answers = await asyncio.gather(*(fetch(handler) for _ in range(20)))
    assert [answer.status for answer in answers] == [200] * 20
    assert views.events == ["request"] * 20
    assert len(handler.closing_threads._workers) == 1
    await handler.shutdown()


async def test_cancelled_request_that_waits_closes_while_all_threads_are_taken(
    settings: Any,
) -> None:
    settings.REQUEST_THREADS = 1
    handler = ASGIHandler()
    with connected(request_finished, receiver):
        async with taken(handler.threads), asyncio.timeout(10):
            conversation = Conversation("/sync/")
            task = conversation.start(handler)
            await waiting(handler.threads, 1)
            conversation.leave()
            with suppress(asyncio.CancelledError):
                await task
            assert not handler.threads._waiting
    assert views.events == ["request"]
    await handler.shutdown()
