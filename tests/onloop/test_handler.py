import asyncio
import contextlib
import functools
import gc
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextvars import copy_context
from typing import Any, ClassVar

import pytest
import uvicorn
from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.cache.backends.locmem import LocMemCache
from django.core.handlers.asgi import ASGIHandler as DjangoASGIHandler
from django.core.handlers.base import BaseHandler
from django.core.signals import request_finished, request_started
from django.db import connection
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import get_urlconf, set_urlconf
from onloop.handler import ASGIHandler, freeze
from onloop.outcome import SCOPE_KEY, Delivery, RequestEnd, observe, send_last

from . import views
from .conftest import Conversation, Count, fetch, until


class Observer:
    """Records how each request ended."""

    sync_capable = False
    async_capable = True
    ends: ClassVar[list[tuple[int | None, str]]] = []

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request: Any) -> Any:
        with observe(request, self.record) as observation:
            response = observation.response = await self.get_response(request)
        return response

    def record(self, end: RequestEnd) -> None:
        self.ends.append((end.status, end.outcome))


@pytest.fixture
async def observed(settings: Any) -> AsyncIterator[ASGIHandler]:
    settings.MIDDLEWARE = [f"{__name__}.Observer", *settings.MIDDLEWARE]
    Observer.ends.clear()
    handler = ASGIHandler()
    yield handler
    await handler.threads.shutdown()


def with_headers() -> HttpResponse:
    response = HttpResponse(
        "f\u00fcr", status=201, headers={"x-Note": "", "Y": "f\u00fcr"}
    )
    response.headers["X-NOTE"] = "the last one counts"
    response.set_cookie("a", "1; 2", max_age=60, samesite="Lax")
    response.delete_cookie("b")
    return response


@pytest.mark.parametrize(
    "make_response",
    [
        with_headers,
        HttpResponse,
        lambda: HttpResponse(b"x" * 2**16),
        lambda: HttpResponse(b"x" * (2**16 + 1)),
        lambda: StreamingHttpResponse(iter([b"1", b"2"])),
    ],
)
@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume:Warning")
async def test_sends_what_djangos_handler_sends(make_response: Any) -> None:
    ours: list[Any] = []
    stock: list[Any] = []

    async def send(message: Any) -> None:
        ours.append(message)

    async def send_stock(message: Any) -> None:
        stock.append(message)

    await ASGIHandler().deliver(make_response(), Delivery(), send, copy_context())
    await DjangoASGIHandler().send_response(make_response(), send_stock)
    assert ours == stock
    assert ours[0]["status"] == make_response().status_code


class Iteration:
    """As granian's send() returns it: an iterator without send() and throw()."""

    def __init__(self, future: asyncio.Future[None]) -> None:
        self.future = future

    def __await__(self) -> "Iteration":
        return self

    def __next__(self) -> asyncio.Future[None]:
        if self.future.done():
            raise StopIteration
        # asyncio requires it of what a task awaits.
        self.future._asyncio_future_blocking = True
        return self.future


@pytest.mark.parametrize("cancelled", [False, True])
async def test_last_message_waits_for_an_awaitable_that_is_no_coroutine(
    cancelled: bool,
) -> None:
    sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    sending = asyncio.ensure_future(
        send_last(lambda _: Iteration(sent), {}, copy_context())  # type: ignore
    )
    await asyncio.sleep(0)
    assert not sending.done()
    if cancelled:
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
    else:
        sent.set_result(None)
        await sending


@contextlib.contextmanager
def connected(signal: Any, receiver: Any) -> Iterator[None]:
    signal.connect(receiver)
    try:
        yield
    finally:
        signal.disconnect(receiver)


# Outcomes.


async def test_answered_request_is_completed(observed: ASGIHandler) -> None:
    await fetch(observed)
    assert Observer.ends == [(200, "completed")]


async def test_failing_view_is_completed(observed: ASGIHandler) -> None:
    await fetch(observed, "/error/")
    assert Observer.ends == [(500, "completed")]


async def test_broken_stream_is_failed(observed: ASGIHandler) -> None:
    with pytest.raises(ArithmeticError):
        await fetch(observed, "/broken-stream/")
    assert Observer.ends == [(200, "failed")]


async def test_request_whose_client_left_is_disconnected(observed: ASGIHandler) -> None:
    conversation = Conversation("/wait/")
    task = conversation.start(observed)
    await views.arrived.wait()
    conversation.leave()
    await task
    assert Observer.ends == [(499, "disconnected")]


async def test_stream_whose_client_left_is_disconnected(observed: ASGIHandler) -> None:
    conversation = Conversation("/stream/")
    task = conversation.start(observed)
    await views.arrived.wait()
    conversation.leave()
    await task
    assert Observer.ends == [(200, "disconnected")]


async def test_stopped_request_is_cancelled(observed: ASGIHandler) -> None:
    task = Conversation("/wait/").start(observed)
    await views.arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert Observer.ends == [(None, "cancelled")]


# The client leaves.


async def test_cleanup_after_a_disconnect_runs_in_the_requests_own_task_and_context(
    handler: ASGIHandler,
) -> None:
    conversation = Conversation("/wait/")
    task = conversation.start(handler)
    await views.arrived.wait()
    conversation.leave()
    await task
    assert views.events == ["cleanup red True"]


async def test_stream_whose_client_left_is_closed_in_its_own_task(
    handler: ASGIHandler,
) -> None:
    conversation = Conversation("/stream/")
    task = conversation.start(handler)
    await views.arrived.wait()
    conversation.leave()
    await task
    assert views.events == ["stream closed True"]


async def test_stream_is_closed_when_sending_is_cancelled(handler: ASGIHandler) -> None:
    conversation = Conversation("/stream/")
    stuck = asyncio.Event()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            stuck.set()
            await asyncio.Event().wait()

    conversation.send = send  # type: ignore[method-assign]
    task = conversation.start(handler)
    await stuck.wait()
    conversation.leave()
    await task
    assert views.events == ["stream closed True"]


async def test_view_may_ignore_that_the_client_left(observed: ASGIHandler) -> None:
    conversation = Conversation("/stubborn/")
    task = conversation.start(observed)
    await views.arrived.wait()
    conversation.leave()
    await task
    assert Observer.ends == [(499, "disconnected")]
    assert task.cancelling() == 0


async def test_disconnect_does_not_swallow_the_cancellation_of_the_server(
    observed: ASGIHandler,
) -> None:
    conversation = Conversation("/wait/")
    task = conversation.start(observed)
    await views.arrived.wait()
    conversation.leave()
    while not conversation.scope[SCOPE_KEY].client_disconnected:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert Observer.ends == [(499, "disconnected")]


async def test_view_that_never_waits_costs_no_listener(handler: ASGIHandler) -> None:
    before = asyncio.all_tasks()
    created = []
    loop = asyncio.get_running_loop()
    loop.set_task_factory(
        lambda loop, coro, **kw: created.append(coro) or asyncio.Task(coro, loop=loop)  # type: ignore[func-returns-value]
    )
    try:
        await Conversation().run(handler)
        await asyncio.sleep(0)
    finally:
        loop.set_task_factory(None)
    assert created == []
    assert asyncio.all_tasks() == before


async def test_no_listener_is_left_behind(handler: ASGIHandler) -> None:
    before = asyncio.all_tasks()
    await fetch(handler, "/sync/")
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_client_that_leaves_during_its_upload_gets_no_answer(
    handler: ASGIHandler,
) -> None:
    conversation = Conversation()
    conversation.incoming = asyncio.Queue()
    conversation.leave()
    await conversation.start(handler)
    assert conversation.sent == []


# request_finished and the end of a response.


@pytest.mark.parametrize(
    "path", ["/", "/sync/", "/error/", "/nowhere/", "/teapot/", "/message/add/"]
)
async def test_request_finished_is_sent_once(
    handler: ASGIHandler, finished: list[str], path: str
) -> None:
    await fetch(handler, path)
    assert len(finished) == 1


async def test_request_finished_is_sent_once_for_a_broken_stream(
    handler: ASGIHandler, finished: list[str]
) -> None:
    with pytest.raises(ArithmeticError):
        await fetch(handler, "/broken-stream/")
    assert len(finished) == 1


@pytest.mark.parametrize("path", ["/wait/", "/stream/", "/stubborn/"])
async def test_request_finished_is_sent_once_when_the_client_leaves(
    handler: ASGIHandler, finished: list[str], path: str
) -> None:
    conversation = Conversation(path)
    task = conversation.start(handler)
    await views.arrived.wait()
    conversation.leave()
    await task
    assert len(finished) == 1


@pytest.mark.parametrize("times", [1, 2])
async def test_request_finished_is_sent_once_when_the_server_cancels(
    handler: ASGIHandler, finished: list[str], times: int
) -> None:
    task = Conversation("/blocking/").start(handler)
    await views.arrived.wait()
    for _ in range(times):
        task.cancel()
        for _ in range(3):
            await asyncio.sleep(0)
    views.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: len(finished) == 1)


async def test_request_finished_is_sent_once_for_an_unreadable_request(
    handler: ASGIHandler, finished: list[str]
) -> None:
    conversation = Conversation()
    conversation.scope["query_string"] = b"\xff"
    answer = await conversation.run(handler)
    assert (answer.status, len(finished)) == (400, 1)


async def test_sync_receivers_run_in_the_thread_of_the_request(
    handler: ASGIHandler,
) -> None:
    threads = []

    def receiver(**kwargs: Any) -> None:
        threads.append(threading.get_ident())

    with connected(request_started, receiver), connected(request_finished, receiver):
        answer = await fetch(handler, "/thread/")
    assert f"[{threads[0]}, {threads[1]}]" == answer.body.decode()


async def test_async_receiver_of_request_finished_is_called(
    handler: ASGIHandler,
) -> None:
    senders = []

    async def receiver(sender: Any, **kwargs: Any) -> None:
        senders.append(sender)

    with connected(request_finished, receiver):
        await fetch(handler)
    assert senders == [ASGIHandler]


class ClosedCache(LocMemCache):
    closed: list[str] = []  # noqa: RUF012

    def close(self, **kwargs: Any) -> None:
        self.closed.append(threading.current_thread().name)


async def test_cache_used_in_an_async_view_is_closed_in_a_thread(settings: Any) -> None:
    settings.CACHES = {"default": {"BACKEND": f"{__name__}.ClosedCache"}}
    ClosedCache.closed.clear()
    handler = ASGIHandler()
    await fetch(handler, "/cache/")
    await handler.threads.shutdown()
    assert len(ClosedCache.closed) == 1
    assert ClosedCache.closed[0].startswith("request")


@pytest.fixture
def opened_by_test(transactional_db: None) -> None:
    connection.ensure_connection()


async def test_connection_of_the_loops_own_thread_is_left_alone(
    opened_by_test: None, handler: ASGIHandler, finished: list[str]
) -> None:
    await fetch(handler)
    assert finished == ["MainThread"]


async def test_urlconf_is_reset_in_the_context_of_the_request(
    handler: ASGIHandler,
) -> None:
    await fetch(handler)
    assert get_urlconf() is None


async def test_urlconf_of_the_surrounding_context_is_not_used(
    handler: ASGIHandler,
) -> None:
    # A server may start a connection's next request before this one has ended.
    set_urlconf("elsewhere")
    answer = await fetch(handler, "/urlconf/")
    assert answer.body == b"tests.onloop.urls"


async def test_request_leaves_nothing_to_the_garbage_collector(settings: Any) -> None:
    class Server(Conversation):
        """Like uvicorn's cycle: what it passes to the application refers back to it."""

        async def receive(self) -> Any:
            return await self.incoming.get()

        async def serve(self, handler: ASGIHandler) -> None:
            await handler(self.scope, self.receive, self.send)

    # AuthenticationMiddleware creates a reference cycle of its own.
    settings.MIDDLEWARE = ["django.middleware.security.SecurityMiddleware"]
    handler = ASGIHandler()
    await Server().serve(handler)
    gc.collect()
    gc.disable()
    try:
        await Server().serve(handler)
        assert gc.collect() == 0
    finally:
        gc.enable()


async def test_what_was_imported_is_frozen_at_the_first_start_only() -> None:
    handler = ASGIHandler()
    frozen = []
    freeze.cache_clear()
    try:
        for _ in range(2):
            gc.unfreeze()
            await handler.startup()
            frozen.append(gc.get_freeze_count() > 10_000)
    finally:
        await handler.shutdown()
        gc.freeze()
    assert frozen == [True, False]


# Context variables.


class Colouring:
    """Sets a context variable on the way in, and shows it on the way out."""

    sync_capable = False
    async_capable = True

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request: Any) -> HttpResponse:
        views.colour.set("green")
        response: HttpResponse = await self.get_response(request)
        response["X-Colour"] = views.colour.get()
        return response


@pytest.mark.parametrize("application", [DjangoASGIHandler, ASGIHandler])
async def test_context_variables_reach_view_and_thread_and_come_back(
    application: type[DjangoASGIHandler], settings: Any
) -> None:
    settings.MIDDLEWARE = [f"{__name__}.Colouring", *settings.MIDDLEWARE]
    handler = application()
    answer = await fetch(handler, "/context/")
    if isinstance(handler, ASGIHandler):
        await handler.threads.shutdown()
    assert answer.body == b'["green", "green", "yellow"]'
    assert answer.header("x-colour") == ["yellow"]


# Scopes, bodies, logging.


async def test_lifespan_starts_and_stops(handler: ASGIHandler) -> None:
    sent: list[Any] = []
    messages = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive() -> dict[str, Any]:
        return {"type": next(messages)}

    async def send(message: Any) -> None:
        sent.append(message)

    await handler({"type": "lifespan"}, receive, send)
    assert [message["type"] for message in sent] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]


@pytest.mark.parametrize("phase", ["startup", "shutdown"])
async def test_lifespan_says_what_failed(
    handler: ASGIHandler, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    async def broken() -> None:
        raise OSError("no more disk")

    monkeypatch.setattr(handler, phase, broken)
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {}

    async def send(message: Any) -> None:
        sent.append(message)

    await handler({"type": "lifespan"}, receive, send)
    assert sent[-1] == {
        "type": f"lifespan.{phase}.failed",
        "message": f"The {phase} failed: OSError('no more disk')",
    }


async def test_websocket_is_refused_as_in_stock(handler: ASGIHandler) -> None:
    with pytest.raises(ValueError, match="websocket"):
        await handler({"type": "websocket"}, None, None)  # type: ignore[arg-type]


async def test_body_beyond_memory_is_read(handler: ASGIHandler, settings: Any) -> None:
    settings.FILE_UPLOAD_MAX_MEMORY_SIZE = 10
    conversation = Conversation("/upload/", "POST")
    conversation.incoming = asyncio.Queue()
    for more in (True, True, False):
        message = {"type": "http.request", "body": b"x" * 100, "more_body": more}
        conversation.incoming.put_nowait(message)
    assert (await conversation.run(handler)).body == b"300"


async def test_refusal_is_logged_once(
    handler: ASGIHandler, caplog: pytest.LogCaptureFixture
) -> None:
    await fetch(handler, "/teapot/")
    assert caplog.messages == ["I'm a Teapot: /teapot/"]


async def test_refusal_is_logged_in_a_thread_where_a_log_handler_may_block(
    handler: ASGIHandler, count: Count
) -> None:
    blocking = logging.StreamHandler()
    logging.getLogger("django").addHandler(blocking)
    try:
        await fetch(handler, "/teapot/")
    finally:
        logging.getLogger("django").removeHandler(blocking)
    assert count.hops == 1


async def test_djangos_handler_serves_the_same(handler: ASGIHandler) -> None:
    assert (await fetch(DjangoASGIHandler())).body == (await fetch(handler)).body


def test_handler_is_recognised_as_asynchronous() -> None:
    assert iscoroutinefunction(ASGIHandler.__call__)


# Error reporters and tracers that replace methods of Django's handler.


@pytest.mark.parametrize(
    ("owner", "name"),
    [(DjangoASGIHandler, "__call__"), (BaseHandler, "get_response_async")],
)
async def test_method_of_djangos_that_was_replaced_is_reached(
    handler: ASGIHandler, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    method = getattr(owner, name)
    reached = []

    @functools.wraps(method)
    async def replacement(self: ASGIHandler, *args: Any) -> Any:
        reached.append(self)
        return await method(self, *args)

    monkeypatch.setattr(owner, name, replacement)
    assert (await fetch(handler)).status == 200
    assert reached == [handler]


REPLACED_EARLY = """
import asyncio, functools
import django
from django.core.handlers.asgi import ASGIHandler as DjangoASGIHandler
from django.core.handlers.base import BaseHandler

def replace(owner, name):
    method = getattr(owner, name)

    @functools.wraps(method)
    async def replacement(*args):
        print(name)
        return await method(*args)

    setattr(owner, name, replacement)

replace(DjangoASGIHandler, "__call__")
replace(BaseHandler, "get_response_async")
django.setup()
from tests.onloop.conftest import fetch
from onloop.handler import ASGIHandler

print(asyncio.run(fetch(ASGIHandler())).status)
"""


def test_methods_that_were_replaced_before_the_handler_is_imported_are_reached() -> (
    None
):
    done = subprocess.run(
        [sys.executable, "-c", REPLACED_EARLY],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout.split() == ["__call__", "get_response_async", "200"], done.stderr


async def test_methods_of_djangos_that_nobody_replaced_are_not_called(
    handler: ASGIHandler,
) -> None:
    called = set()
    sys.setprofile(lambda frame, event, arg: called.add(frame.f_code))
    try:
        await fetch(handler)
    finally:
        sys.setprofile(None)
    assert ASGIHandler.get_response_async.__code__ in called
    assert DjangoASGIHandler.__call__.__code__ not in called
    assert BaseHandler.get_response_async.__code__ not in called


# On a real server.


class Server(uvicorn.Server):
    def __init__(self, application: Any) -> None:
        config = uvicorn.Config(
            application, port=0, log_config=None, timeout_graceful_shutdown=5
        )
        super().__init__(config)

    @property
    def port(self) -> int:
        return int(self.servers[0].sockets[0].getsockname()[1])


@pytest.fixture
async def server(observed: ASGIHandler) -> AsyncIterator[Server]:
    server = Server(observed)
    serving = asyncio.create_task(server._serve())
    await until(lambda: server.started)
    yield server
    server.should_exit = True
    await serving


async def ask(server: Server, path: str) -> Any:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return reader, writer


def hang_up(writer: asyncio.StreamWriter) -> None:
    # With SO_LINGER at 0, closing sends RST instead of FIN.
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.close()


async def test_server_tells_of_a_client_that_leaves_before_the_response(
    server: Server, observed: ASGIHandler, finished: list[str]
) -> None:
    _, writer = await ask(server, "/wait/")
    await views.arrived.wait()
    hang_up(writer)
    await until(lambda: bool(finished))
    assert Observer.ends == [(499, "disconnected")]


async def test_server_tells_of_a_client_that_leaves_amid_a_stream(
    server: Server, observed: ASGIHandler, finished: list[str]
) -> None:
    reader, writer = await ask(server, "/stream/")
    await reader.readuntil(b"chunk")
    hang_up(writer)
    await until(lambda: bool(finished))
    assert Observer.ends == [(200, "disconnected")]
    assert views.events == ["stream closed True"]


async def test_server_cuts_off_a_broken_stream(
    server: Server, observed: ASGIHandler, finished: list[str]
) -> None:
    reader, writer = await ask(server, "/broken-stream/")
    received = await reader.read()
    writer.close()
    assert received.endswith(b"half\r\n")
    assert Observer.ends == [(200, "failed")]
    assert len(finished) == 1


async def test_kept_connection_serves_the_next_request(
    server: Server, observed: ASGIHandler
) -> None:
    reader, writer = await ask(server, "/")
    await reader.readuntil(b"}")
    writer.write(b"GET /sync/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.readuntil(b"\r\n\r\nsync")
    writer.close()
    await until(lambda: len(Observer.ends) == 2)
    assert Observer.ends == [(200, "completed"), (200, "completed")]


async def test_server_that_stops_cancels_a_long_request(
    server: Server, observed: ASGIHandler
) -> None:
    server.config.timeout_graceful_shutdown = 0
    _, writer = await ask(server, "/wait/")
    await views.arrived.wait()
    server.should_exit = True
    await until(lambda: bool(Observer.ends))
    writer.close()
    assert Observer.ends == [(None, "cancelled")]
