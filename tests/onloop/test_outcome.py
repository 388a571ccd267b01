"""observe() and RequestEnd, in process: through both handlers and both test clients."""

import asyncio
import gc
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import pytest
from asgiref.sync import markcoroutinefunction
from django.core.exceptions import MiddlewareNotUsed
from django.core.handlers.asgi import ASGIHandler as DjangoASGIHandler
from django.core.signals import request_started
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, RequestFactory
from django.urls import ResolverMatch
from django.utils.decorators import async_only_middleware
from onloop.handler import ASGIHandler
from onloop.outcome import (
    SCOPE_KEY,
    Delivery,
    RequestEnd,
    observe,
    request_fields,
)

from . import outcomes
from .conftest import Conversation, fetch, until

pytestmark = pytest.mark.filterwarnings(
    # Django warns about synchronous iterators, such as that of its own FileResponse.
    "ignore:StreamingHttpResponse must consume:Warning",
    # Django 5.2's handler does not close the body of a request that is cut short.
    "ignore:Unclosed file:ResourceWarning",
)
OBSERVER = "tests.onloop.outcomes.Observer"


@pytest.fixture(autouse=True)
def project(settings: Any) -> Iterator[None]:
    settings.ROOT_URLCONF = "tests.onloop.outcomes"
    settings.MIDDLEWARE = [OBSERVER, *settings.MIDDLEWARE]
    outcomes.reset()
    yield
    outcomes.reset()


@pytest.fixture(params=[ASGIHandler, DjangoASGIHandler], ids=["onloop", "django"])
async def application(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    handler = request.param()
    yield handler
    if isinstance(handler, ASGIHandler):
        await handler.threads.shutdown()
    # Collected here, and not in another test that does not expect the warning.
    gc.collect()


def the_end() -> RequestEnd:
    [observed] = outcomes.ends
    start, end = observed.start, observed.end
    assert start <= (end.first_byte or start) <= end.ended
    return end


def status_and_outcome() -> tuple[int | None, str]:
    end = the_end()
    return end.status, end.outcome


# Responses.


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/ok/", 200),
        ("HEAD", "/ok/", 200),
        ("OPTIONS", "/ok/", 200),
        ("GET", "/sync/", 200),
        ("GET", "/error/", 500),
        ("GET", "/nowhere/", 404),
        ("GET", "/unchanged/", 304),
    ],
)
async def test_request_with_a_response_is_completed(
    application: Any, method: str, path: str, status: int
) -> None:
    headers = {"if-modified-since": "Thu, 01 Jan 2026 00:00:00 GMT"}
    answer = await fetch(application, path, method, headers=headers)
    assert answer.status == status
    assert status_and_outcome() == (status, "completed")
    assert the_end().first_byte is None


@pytest.mark.parametrize("path", ["/file/", "/stream/success/", "/sync-stream/done/"])
async def test_stream_that_ends_is_completed_after_its_last_byte(
    application: Any, path: str
) -> None:
    conversation = Conversation(path)
    ended_before: list[int] = []

    async def send(message: Any) -> None:
        ended_before.append(len(outcomes.ends))
        conversation.sent.append(message)

    conversation.send = send  # type: ignore[method-assign]
    await conversation.run(application)
    assert status_and_outcome() == (200, "completed")
    assert the_end().first_byte is not None
    # Before each message that has a part of the body.
    assert set(ended_before[:-1]) == {0}


async def test_stream_without_a_byte_has_no_first_byte(application: Any) -> None:
    await fetch(application, "/stream/empty/")
    assert status_and_outcome() == (200, "completed")
    assert the_end().first_byte is None


@pytest.mark.parametrize("path", ["/stream/failure/", "/sync-stream/failure/"])
async def test_stream_that_raises_failed(application: Any, path: str) -> None:
    with pytest.raises(ArithmeticError):
        await fetch(application, path)
    assert status_and_outcome() == (200, "failed")
    assert outcomes.events == ["cleaned up"]


async def test_deadline_that_passes_inside_is_completed(
    application: Any, settings: Any
) -> None:
    settings.MIDDLEWARE = [OBSERVER, "tests.onloop.outcomes.deadline"]
    handler = type(application)()
    answer = await fetch(handler, "/wait/")
    assert answer.status == 504
    assert status_and_outcome() == (504, "completed")


async def test_view_that_cancels_itself_failed(application: Any) -> None:
    with pytest.raises(asyncio.CancelledError):
        await fetch(application, "/cancels-itself/")
    assert status_and_outcome() == (500, "failed")


# The client disconnects.


async def leave(application: Any, path: str, method: str = "GET") -> None:
    conversation = Conversation(path, method)
    task = conversation.start(application)
    await outcomes.arrived.wait()
    assert not outcomes.ends
    conversation.leave()
    # Django's own handler propagates the cancellation of a view.
    with suppress(asyncio.CancelledError):
        await task


async def test_client_that_leaves_before_the_response_is_disconnected(
    application: Any,
) -> None:
    await leave(application, "/wait/")
    assert status_and_outcome() == (499, "disconnected")
    assert outcomes.events == ["in the view", "cleaned up"]


async def test_client_that_leaves_amid_a_stream_is_disconnected(
    application: Any,
) -> None:
    await leave(application, "/stream/never/")
    await until(lambda: bool(outcomes.ends))
    assert status_and_outcome() == (200, "disconnected")
    assert the_end().first_byte is not None


async def test_generator_of_a_disconnected_stream_is_closed_by_its_own_task() -> None:
    handler = ASGIHandler()
    await leave(handler, "/stream/never/")
    assert outcomes.events == ["in the stream", "cleaned up"]


async def test_client_may_leave_once_it_has_the_announced_length(
    application: Any,
) -> None:
    await leave(application, "/stream/length/")
    await until(lambda: bool(outcomes.ends))
    assert status_and_outcome() == (200, "completed")


async def test_client_that_asks_for_the_head_of_a_stream_may_leave_with_it(
    application: Any,
) -> None:
    await leave(application, "/stream/never/", "HEAD")
    await until(lambda: bool(outcomes.ends))
    assert status_and_outcome() == (200, "completed")


@pytest.mark.parametrize("path", ["/stubborn/", "/stubborn/?stream"])
async def test_response_that_nobody_receives_is_disconnected(
    handler: ASGIHandler, path: str
) -> None:
    await leave(handler, path)
    assert outcomes.events[:2] == ["in the stubborn view", "ignored"]
    assert status_and_outcome() == (499, "disconnected")


async def test_synchronous_view_that_still_runs_delays_no_end(
    handler: ASGIHandler,
) -> None:
    conversation = Conversation("/blocking/")
    task = conversation.start(handler)
    await until(lambda: bool(outcomes.events))
    conversation.leave()
    await until(lambda: bool(outcomes.ends))
    assert outcomes.events == ["in the view"]
    outcomes.gate.set()
    await task
    await handler.threads.shutdown()
    assert status_and_outcome() == (499, "disconnected")


# The server stops.


async def cancel(application: Any, path: str) -> None:
    task = Conversation(path).start(application)
    await outcomes.arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_view_that_the_server_cancels_has_no_status(handler: ASGIHandler) -> None:
    await cancel(handler, "/wait/")
    assert status_and_outcome() == (None, "cancelled")


async def test_stream_that_the_server_cancels_is_cancelled(
    handler: ASGIHandler,
) -> None:
    await cancel(handler, "/stream/never/")
    assert status_and_outcome() == (200, "cancelled")
    assert outcomes.events == ["in the stream", "cleaned up"]


# The request ends before the middleware is called.


async def abort(application: Any) -> None:
    conversation = Conversation("/upload/?name=x", "POST")
    conversation.incoming = asyncio.Queue()
    part = {"type": "http.request", "body": b"part", "more_body": True}
    conversation.incoming.put_nowait(part)
    conversation.leave()
    await conversation.start(application)
    assert conversation.sent == []


async def test_aborted_upload_is_reported_outermost_first(settings: Any) -> None:
    inner = settings.MIDDLEWARE[1:]
    settings.MIDDLEWARE = ["tests.onloop.outcomes.Outer", *inner, OBSERVER]
    await abort(ASGIHandler())
    assert [observed.observer for observed in outcomes.ends] == ["Outer", "Observer"]
    for observed in outcomes.ends:
        assert observed.path == "/upload/?name=x"
        assert observed.end[:2] == ("disconnected", 499)
        assert observed.start <= observed.end.ended


def not_used(get_response: Any) -> Any:
    raise MiddlewareNotUsed


async def test_abort_is_reported_once_inside_an_unused_middleware(
    settings: Any,
) -> None:
    settings.MIDDLEWARE = [f"{__name__}.not_used", *settings.MIDDLEWARE]
    await abort(ASGIHandler())
    assert status_and_outcome() == (499, "disconnected")


async def test_uploaded_body_is_no_abort(handler: ASGIHandler) -> None:
    await fetch(handler, "/upload/", "POST", b"x" * 10_000)
    assert status_and_outcome() == (200, "completed")


async def test_body_that_cannot_be_stored_failed(
    handler: ASGIHandler, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.FILE_UPLOAD_MAX_MEMORY_SIZE = 1
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(FileNotFoundError):
        await fetch(handler, "/upload/", "POST", b"x" * 10_000)
    assert status_and_outcome() == (500, "failed")


async def test_request_that_a_receiver_refuses_failed(handler: ASGIHandler) -> None:
    def refuse(**kwargs: Any) -> None:
        raise ArithmeticError("on purpose")

    request_started.connect(refuse)
    try:
        with pytest.raises(ArithmeticError):
            await fetch(handler, "/ok/")
    finally:
        request_started.disconnect(refuse)
    assert status_and_outcome() == (500, "failed")
    assert not handler.running


# Sending.


class Stalled(Conversation):
    """A conversation whose server never finishes sending the last message."""

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            outcomes.arrived.set()
            try:
                # With sleep(0) there is no future that the cancellation could end.
                while True:
                    await asyncio.sleep(0)
            except asyncio.CancelledError:
                outcomes.log("no longer sent")
                raise


class Slow(Conversation):
    """A conversation whose server waits before it sends each message."""

    async def send(self, message: Any) -> None:
        outcomes.log(outcomes.colour.get())
        await asyncio.sleep(0.001)
        outcomes.log(outcomes.colour.get())
        await super().send(message)


@pytest.mark.parametrize("path", ["/ok/", "/stream/empty/"])
async def test_last_message_is_sent_in_the_context_that_the_request_began_in(
    handler: ASGIHandler, path: str
) -> None:
    outcomes.colour.set("green")
    answer = await Slow(path).run(handler)
    assert answer.status == 200
    assert status_and_outcome() == (200, "completed")
    assert outcomes.events[-2:] == ["green", "green"]
    assert outcomes.ends[0].colour == "red"


@pytest.mark.parametrize("path", ["/ok/", "/stream/success/"])
async def test_client_that_leaves_amid_the_last_message_is_disconnected(
    handler: ASGIHandler, path: str
) -> None:
    conversation = Stalled(path)
    task = conversation.start(handler)
    await outcomes.arrived.wait()
    assert not outcomes.ends
    conversation.leave()
    await task
    assert status_and_outcome() == (200, "disconnected")
    assert outcomes.events[-1] == "no longer sent"


async def test_response_ends_when_it_was_made_not_when_it_was_sent(
    handler: ASGIHandler,
) -> None:
    conversation = Stalled("/ok/")
    task = conversation.start(handler)
    await outcomes.arrived.wait()
    before = time.perf_counter()
    conversation.leave()
    await task
    assert the_end().ended < before


@pytest.mark.parametrize("path", ["/ok/", "/stream/success/"])
async def test_observer_that_raises_hides_nothing(
    settings: Any,
    finished: list[str],
    caplog: pytest.LogCaptureFixture,
    path: str,
) -> None:
    settings.MIDDLEWARE = [f"{__name__}.raising_observer"]
    assert (await fetch(ASGIHandler(), path)).status == 200
    assert len(finished) == 1
    assert "ArithmeticError: on purpose" in caplog.text


async def test_observer_that_raises_hides_no_cancellation(settings: Any) -> None:
    settings.MIDDLEWARE = [f"{__name__}.raising_observer"]
    task = Conversation("/wait/").start(ASGIHandler())
    await outcomes.arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_process_abort_that_raises_does_not_hide_the_end_from_others(
    settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.MIDDLEWARE = [f"{__name__}.RaisingAbort", *settings.MIDDLEWARE]
    await abort(ASGIHandler())
    assert status_and_outcome() == (499, "disconnected")
    assert "ArithmeticError: on purpose" in caplog.text


class RaisingAbort:
    sync_capable = False
    async_capable = True

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> Any:
        return await self.get_response(request)

    def process_abort(self, *args: Any) -> None:
        raise ArithmeticError("on purpose")


@async_only_middleware
def raising_observer(get_response: Any) -> Any:
    def on_end(end: RequestEnd) -> None:
        raise ArithmeticError("on purpose")

    async def middleware(request: HttpRequest) -> Any:
        with observe(request, on_end) as observation:
            response = observation.response = await get_response(request)
        return response

    return middleware


# Context, nesting.


@pytest.mark.parametrize(
    "path", ["/ok/", "/stream/success/", "/stream/failure/", "/stream/empty/"]
)
async def test_end_is_reported_in_the_context_of_the_request(
    application: Any, path: str
) -> None:
    with suppress(ArithmeticError):
        await fetch(application, path)
    [observed] = outcomes.ends
    assert observed.colour == "red"


@pytest.mark.parametrize("path", ["/wait/", "/stream/never/"])
async def test_end_after_a_disconnect_is_reported_in_the_requests_context(
    application: Any, path: str
) -> None:
    await leave(application, path)
    await until(lambda: bool(outcomes.ends))
    [observed] = outcomes.ends
    assert observed.colour == "red"


@pytest.mark.parametrize(
    ("path", "end"),
    [
        ("/ok/", ("completed", 200)),
        ("/stream/success/", ("completed", 200)),
        ("/sync-stream/done/", ("completed", 200)),
        ("/stream/failure/", ("failed", 200)),
        ("/wait/", ("disconnected", 499)),
        ("/stream/never/", ("disconnected", 200)),
    ],
)
async def test_two_observers_see_the_same_end(
    settings: Any, path: str, end: tuple[str, int]
) -> None:
    settings.MIDDLEWARE = ["tests.onloop.outcomes.Outer", *settings.MIDDLEWARE]
    handler = ASGIHandler()
    if end[0] == "disconnected":
        await leave(handler, path)
    else:
        with suppress(ArithmeticError):
            await fetch(handler, path)
    await handler.threads.shutdown()
    assert {observed.observer for observed in outcomes.ends} == {"Observer", "Outer"}
    assert [observed.end[:2] for observed in outcomes.ends] == [end, end]


async def test_compressed_stream_ends_with_its_last_byte(settings: Any) -> None:
    gzip = "django.middleware.gzip.GZipMiddleware"
    settings.MIDDLEWARE = [gzip, *settings.MIDDLEWARE]
    headers = {"accept-encoding": "gzip"}
    answer = await fetch(ASGIHandler(), "/stream/success/", headers=headers)
    assert answer.header("content-encoding") == ["gzip"]
    assert status_and_outcome() == (200, "completed")


@pytest.mark.parametrize("query", ["", "?raise"])
async def test_stream_that_is_dropped_for_another_response_is_completed(
    application: Any, settings: Any, query: str
) -> None:
    settings.MIDDLEWARE = ["tests.onloop.outcomes.replacing", OBSERVER]
    handler = type(application)()
    await fetch(handler, f"/stream/never/{query}")
    assert status_and_outcome() == (200, "completed")
    [observed] = outcomes.ends
    assert observed.colour == "red"


async def test_stream_that_was_left_before_it_was_sent_is_disconnected(
    settings: Any,
) -> None:
    settings.MIDDLEWARE = ["tests.onloop.outcomes.replacing", OBSERVER]
    await leave(ASGIHandler(), "/stream/never/?wait")
    assert status_and_outcome() == (200, "disconnected")


async def test_stream_that_was_cancelled_before_it_was_sent_is_cancelled(
    settings: Any,
) -> None:
    settings.MIDDLEWARE = ["tests.onloop.outcomes.replacing", OBSERVER]
    await cancel(ASGIHandler(), "/stream/never/?wait")
    # A traceback may keep the response alive for a while.
    await until(lambda: bool(outcomes.ends))
    assert status_and_outcome() == (200, "cancelled")


# Without a server.


@pytest.mark.parametrize(
    ("path", "status"), [("/ok/", 200), ("/error/", 500), ("/nowhere/", 404)]
)
async def test_async_client(async_client: AsyncClient, path: str, status: int) -> None:
    async_client.raise_request_exception = False
    await async_client.get(path)
    assert status_and_outcome() == (status, "completed")


@pytest.mark.parametrize(
    ("path", "status"), [("/ok/", 200), ("/error/", 500), ("/nowhere/", 404)]
)
def test_sync_client(client: Client, path: str, status: int) -> None:
    client.raise_request_exception = False
    client.get(path)
    assert status_and_outcome() == (status, "completed")


async def read(response: Any) -> bytes:
    return b"".join([part async for part in response])


async def test_stream_of_the_async_client_ends_when_it_was_read(
    async_client: AsyncClient,
) -> None:
    response = await async_client.get("/stream/success/")
    assert not outcomes.ends
    assert await read(response) == b"first\nlast\n"
    response.close()
    assert status_and_outcome() == (200, "completed")
    assert the_end().first_byte is not None


async def test_stream_of_the_async_client_that_raises_failed(
    async_client: AsyncClient,
) -> None:
    response = await async_client.get("/stream/failure/")
    with pytest.raises(ArithmeticError):
        await read(response)
    response.close()
    assert status_and_outcome() == (200, "failed")


async def test_unread_stream_of_the_async_client_is_disconnected(
    async_client: AsyncClient,
) -> None:
    response = await async_client.get("/stream/success/")
    response.close()
    response.close()
    assert status_and_outcome() == (200, "disconnected")
    assert the_end().first_byte is None


def test_stream_of_the_sync_client_ends_when_it_was_read(client: Client) -> None:
    response: Any = client.get("/sync-stream/done/")
    assert not outcomes.ends
    assert b"".join(response) == b"first\nlast\n"
    response.close()
    assert status_and_outcome() == (200, "completed")


async def test_generator_of_a_cut_off_stream_is_closed_with_it() -> None:
    content = outcomes.chunks("success", asyncio.current_task())
    response = StreamingHttpResponse(content)
    with observe(HttpRequest(), lambda end: None) as observation:
        observation.response = response
    parts = vars(response)["_iterator"]
    assert await anext(parts) == b"first\n"
    await parts.aclose()
    assert outcomes.events == ["cleaned up"]


async def test_cancellation_passes_through() -> None:
    ends: list[RequestEnd] = []

    async def request() -> None:
        with observe(HttpRequest(), ends.append):
            await asyncio.Event().wait()

    task = asyncio.create_task(request())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert [end[:2] for end in ends] == [("disconnected", 499)]


def test_response_may_be_set_outside_of_a_task() -> None:
    ends: list[RequestEnd] = []
    with observe(HttpRequest(), ends.append) as observation:
        observation.response = HttpResponse(status=201)
    assert [end[:2] for end in ends] == [("completed", 201)]


def test_fields_tell_how_the_request_ended(rf: RequestFactory) -> None:
    request = rf.get("/a/?b=1")
    end = RequestEnd("disconnected", 499, 12.5)
    assert request_fields(request, 10.0, end) == {
        "method": "GET",
        "path": "/a/",
        "status": 499,
        "duration": 2.5,
        "outcome": "disconnected",
    }
    delivery = Delivery()
    delivery.upload = 0.25
    vars(request)["scope"] = {SCOPE_KEY: delivery}
    request.resolver_match = ResolverMatch(print, (), {}, route="a/<b>/")
    fields = request_fields(request, 10.0, RequestEnd("completed", 200, 12.5, 11.0))
    kept = (fields["route"], fields["first_byte"], fields["upload"])
    assert kept == ("a/<b>/", 1.0, 0.25)
