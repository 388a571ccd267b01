"""How a request ended: the only code that decides it."""

import asyncio
import logging
import time
import types
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from contextvars import Context, copy_context
from typing import Any, NamedTuple, Self

from django.core.exceptions import RequestAborted
from django.http import HttpRequest, StreamingHttpResponse
from django.http.response import HttpResponseBase

logger = logging.getLogger("onloop.outcome")

Send = Callable[[Mapping[str, Any]], Awaitable[None]]

# The key in the ASGI scope of what the handler knows and the middleware does not.
SCOPE_KEY = "onloop.delivery"

# Called when a request begins; set once onloop.panel is in a URLconf.
start_trace: Callable[[], Any] | None = None


class RequestEnd(NamedTuple):
    """How a request ended, and when.

    ``outcome``
        ``completed`` (the server took all of the response), ``failed`` (it did not),
        ``disconnected`` (by the client) or ``cancelled`` (by the server).
    ``status``
        499 if the client disconnected before there was a response; 500 if it failed
        before anything was sent; None if the server stopped before.
    ``ended``, ``first_byte``
        Readings of ``time.perf_counter()``: when the response was made, and a stream's
        when it ended. Only a stream has a first byte, and none if nothing was sent.
    """

    outcome: str
    status: int | None
    ended: float
    first_byte: float | None = None


class Refusal(Exception):
    """The handler refuses the request; it is answered with this status and headers."""

    status = 503
    headers: Mapping[str, str] = {}


class LateBody(Refusal):
    status = 504


class LostBody(Refusal):
    status = 400
    # A server that lost the body may read it as the next request.
    headers: Mapping[str, str] = {"Connection": "close"}


class Delivery:
    """What the handler knows about a request, and the observers of its end."""

    # Defaults on the class would be shorter, but Python looks them up more slowly.
    def __init__(self) -> None:
        # Seconds until the body had arrived, or REQUEST_TIMEOUT had passed.
        self.upload = 0.0
        # To be raised inside the middleware chain, instead of calling the view.
        self.refusal: Refusal | None = None
        self.client_disconnected = False
        self.is_head = False
        # A tracer around the handler closes the request's trace with the last message.
        self.is_traced = False
        self.headers: Iterable[tuple[bytes, bytes]] = ()
        # Whether the server accepted status and headers, and all of the response.
        self.started = self.finished = False
        # Whether the request has ended, and whether its response could not be sent.
        self.has_ended = self.failed = False
        # In all messages but the last.
        self.bytes_sent = 0
        self.first_byte: float | None = None
        # Removed once they are notified, because they refer back to the request.
        self.observers: tuple[observe, ...] = ()

    def end(self, response: HttpResponseBase, made: float, is_head: bool) -> RequestEnd:
        status = response.status_code
        if self.failed:
            outcome, status = "failed", status if self.started else 500
        # A client may leave as soon as it has all that was announced.
        elif (
            self.finished
            or is_head
            or str(self.bytes_sent) == response.headers.get("Content-Length")
        ):
            outcome = "completed"
        else:
            outcome = self.cut_short_by
        if response.streaming:
            return RequestEnd(outcome, status, time.perf_counter(), self.first_byte)
        return RequestEnd(outcome, status, made)

    def end_before_response(self, exc: BaseException | None = None) -> RequestEnd:
        outcome, status = self.cut_short_by, 499 if self.client_disconnected else None
        if exc is not None and not self.client_disconnected and not is_cancelled(exc):
            outcome, status = "failed", 500
        return RequestEnd(outcome, status, time.perf_counter())

    @property
    def cut_short_by(self) -> str:
        """Why a request was cancelled before it was finished."""
        return "disconnected" if self.client_disconnected else "cancelled"

    def close(self) -> None:
        self.has_ended = True
        if not self.finished:
            task = asyncio.current_task()
            cut_short = self.client_disconnected or (task and task.cancelling())
            self.failed = not cut_short
        self.notify()

    def notify(self, abandoned: bool = False) -> None:
        """Notify the observers, each in the context in which its block ended.

        ``abandoned`` means that the request goes on after the shutdown.
        """
        observers, self.observers = self.observers, ()
        for observer in observers:
            observer.context.run(observer.tell, abandoned)

    def observe_send(self, send: Send, context: Context) -> Send:
        def observed_send(message: Mapping[str, Any]) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                return self._send_start(send, message)
            if message.get("more_body"):
                return self._send_part(send, message)
            if self.is_traced:
                self._tell_before_last(message)
            return send_last(send, message, context)

        return observed_send

    def _tell_before_last(self, message: Mapping[str, Any]) -> None:
        """Report the end while the request's trace is still open.

        Not if the server is going to refuse the message, or the client disconnected.
        """
        size = self.bytes_sent + len(message.get("body", b""))
        if not self.client_disconnected and self.is_announced(size):
            self.finished = True
            self.close()

    def is_announced(self, size: int) -> bool:
        """Whether Content-Length, if there is one, agrees with the size."""
        for name, value in self.headers:
            if len(name) == 14 and name.lower() == b"content-length":
                return self.is_head or value == b"%d" % size
        return True

    async def _send_start(self, send: Send, message: Mapping[str, Any]) -> None:
        await send(message)
        self.started = True
        if self.is_traced:
            self.headers = message["headers"]

    async def _send_part(self, send: Send, message: Mapping[str, Any]) -> None:
        await send(message)
        if body := message.get("body"):
            self.first_byte = self.first_byte or time.perf_counter()
            self.bytes_sent += len(body)
        # Sending to a disconnected client does not wait, so let the watcher run to find
        # out that it is.
        await asyncio.sleep(0)
        if self.client_disconnected:
            # The stream caught the cancellation and went on.
            raise asyncio.CancelledError


@types.coroutine
def send_last(
    send: Send, message: Mapping[str, Any], context: Context
) -> Generator[Any, Any, None]:
    """Send the last message in the context in which the request began.

    A server may begin the next request of the connection while it sends the last
    message of this one, and so in a copy of the context that it finds.
    """
    steps: Any = send(message).__await__()
    step, value = next, steps
    while True:
        try:
            future = context.run(step, value)
        except StopIteration:
            return
        try:
            # asyncio sends nothing but None, and granian's iterator has no send().
            yield future
            step, value = next, steps
        except BaseException as exc:
            if not hasattr(steps, "throw"):
                raise
            step, value = steps.throw, exc


def call(on_end: Callable[[RequestEnd], None], end: RequestEnd) -> None:
    """Call an observer. Its errors must not hide how the request ended."""
    try:
        on_end(end)
    except Exception:
        logger.exception("An observer of requests failed")


def is_cancelled(exc: BaseException) -> bool:
    """Whether the task was cancelled, and its own code did not raise the error."""
    task = isinstance(exc, asyncio.CancelledError) and asyncio.current_task()
    return bool(task and task.cancelling())


def delivery_of(request: HttpRequest) -> Delivery | None:
    # Neither Django's own handler nor its test clients create one.
    scope = getattr(request, "scope", None)
    return scope and scope.get(SCOPE_KEY)


def upload_seconds(request: HttpRequest) -> float:
    """How long the body took to arrive before the first middleware was called.

    0 under Django's own handlers, which do not measure it.
    """
    delivery = delivery_of(request)
    return delivery.upload if delivery else 0.0


def request_fields(
    request: HttpRequest, start: float, end: RequestEnd
) -> dict[str, Any]:
    """The fields of a log line for a request that began at ``start``.

    ``start`` is a reading of ``time.perf_counter()``. All times are in seconds; there
    is an ``upload`` if the body took more than 10 ms to arrive.
    """
    fields: dict[str, Any] = {"method": request.method, "path": request.path}
    if request.resolver_match is not None:
        fields["route"] = request.resolver_match.route
    if end.status is not None:
        fields["status"] = end.status
    fields["duration"] = round(end.ended - start, 6)
    fields["outcome"] = end.outcome
    if end.first_byte is not None:
        fields["first_byte"] = round(end.first_byte - start, 6)
    if (upload := upload_seconds(request)) > 0.01:
        fields["upload"] = round(upload, 6)
    return fields


class observe:
    """Observe how a request ends, and whether its response is sent.

        with observe(request, on_end) as observation:
            response = observation.response = await self.get_response(request)

    ``on_end`` is called once with a RequestEnd, synchronously and in the request's
    context: when the response has been sent or cannot be, or when the block ends
    without one. Exceptions propagate, including CancelledError.
    """

    def __init__(
        self, request: HttpRequest, on_end: Callable[[RequestEnd], None]
    ) -> None:
        self.response: HttpResponseBase | None = None
        # When the block ended with a response.
        self.made = 0.0
        self._on_end: Callable[[RequestEnd], None] | None = on_end
        self._is_head = request.method == "HEAD"
        self._delivery = delivery_of(request)

    def __enter__(self) -> Self:
        if self._delivery is not None:
            self._delivery.observers += (self,)
            self.context = copy_context()
        return self

    def __exit__(
        self, exc_type: object, exc: BaseException | None, traceback: object
    ) -> None:
        response, delivery = self.response, self._delivery
        if exc is not None:
            self._tell(self._end_by(exc))
        elif delivery is not None and delivery.client_disconnected:
            # The view ignored the disconnect: nobody receives its response.
            self._tell(delivery.end_before_response())
        elif response is None:
            self._on_end = None
        elif delivery is not None:
            # The handler reports the end, unless this task has outlived its request.
            self.made = time.perf_counter()
            # In this context, instrumentations around the observer know the request.
            self.context = copy_context()
            if delivery.has_ended:
                self.tell()
        elif isinstance(response, StreamingHttpResponse):
            content = AsyncContent if response.is_async else SyncContent
            response.streaming_content = content(response, self._on_end, self._is_head)
        else:
            end = RequestEnd("completed", response.status_code, time.perf_counter())
            self._tell(end)

    def _end_by(self, exc: BaseException) -> RequestEnd:
        if self._delivery is not None:
            return self._delivery.end_before_response(exc)
        if is_cancelled(exc):
            # Most likely the client disconnected.
            return RequestEnd("disconnected", 499, time.perf_counter())
        return RequestEnd("failed", 500, time.perf_counter())

    def tell(self, abandoned: bool = False) -> None:
        assert self._delivery is not None
        if self.response is not None and self.made:
            self._tell(self._delivery.end(self.response, self.made, self._is_head))
        elif abandoned:
            self._tell(self._delivery.end_before_response())

    def _tell(self, end: RequestEnd) -> None:
        """Only the first call has an effect."""
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            call(on_end, end)


class ObservedContent:
    """The content of a stream that Django's own handler or test client sends.

    Django calls close() at its end.
    """

    finished = failed = False
    bytes_taken = 0
    first_byte: float | None = None

    def __init__(
        self,
        response: StreamingHttpResponse,
        on_end: Callable[[RequestEnd], None] | None,
        is_head: bool,
    ) -> None:
        # Through streaming_content, closing would not reach the view's generator.
        self.content: Any = (
            vars(response).get("_iterator") or response.streaming_content
        )
        # Not the response itself, which refers to this object.
        self.charset = response.charset
        self.status = response.status_code
        self.length = response.headers.get("Content-Length")
        self.is_head = is_head
        # Django 5.2 closes the response outside of the task that served the request.
        self.context = copy_context()
        self.on_end = on_end

    def __del__(self) -> None:
        # Nobody closes a response that another middleware has replaced.
        self.finished = True
        self.close()

    def close(self) -> None:
        """Only the first call has an effect."""
        on_end, self.on_end = self.on_end, None
        if on_end is None:
            return
        if self.failed:
            outcome = "failed"
        # A client may leave as soon as it has all that was announced.
        elif self.finished or self.is_head or str(self.bytes_taken) == self.length:
            outcome = "completed"
        else:
            outcome = "disconnected"
        end = RequestEnd(outcome, self.status, time.perf_counter(), self.first_byte)
        self.context.run(call, on_end, end)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, exc_type: object, exc: BaseException | None, traceback: object
    ) -> None:
        self.finished = exc is None
        # Django's handler, too, raises these in a stream that it ends early.
        cut_off = isinstance(exc, (asyncio.CancelledError, GeneratorExit))
        self.failed = exc is not None and not cut_off
        if exc is not None:
            # Django's own handler never closes a response whose stream raised.
            self.close()

    def _count(self, part: object) -> Any:
        self.first_byte = self.first_byte or time.perf_counter()
        size = part if isinstance(part, bytes) else str(part).encode(self.charset)
        self.bytes_taken += len(size)
        return part


class SyncContent(ObservedContent):
    def __iter__(self) -> Iterator[Any]:
        with self:
            for part in self.content:
                yield self._count(part)


class AsyncContent(ObservedContent):
    async def __aiter__(self) -> AsyncIterator[Any]:
        with self:
            try:
                async for part in self.content:
                    yield self._count(part)
            finally:
                # Otherwise the garbage collector does, later and in another task.
                if hasattr(self.content, "aclose"):
                    await self.content.aclose()


class DisconnectWatcher:
    """Cancels the current task if the client disconnects during the block.

    The task is cancelled as ``asyncio.timeout()`` does it, so that the cleanup of a
    view runs in the request's own task and context.
    """

    def __init__(
        self, delivery: Delivery, listen: Callable[[], Awaitable[None]]
    ) -> None:
        self._listener: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        self._exited = False
        self._delivery = delivery
        self._listen = listen

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        # A request that never waits ends before the listener starts.
        self._start = asyncio.get_running_loop().call_soon(self._start_listener)
        return self

    def __exit__(
        self, exc_type: object, exc: BaseException | None, traceback: object
    ) -> bool:
        self._exited = True
        self._start.cancel()
        if self._listener is not None:
            self._listener.cancel()
        if self._error is None:
            return False
        if self._task.uncancel() > self._cancelling:
            # The server cancelled the request too.
            return False
        cancelled = isinstance(exc, asyncio.CancelledError)
        if not self._delivery.client_disconnected and (exc is None or cancelled):
            raise self._error
        return cancelled

    def _start_listener(self) -> None:
        self._listener = asyncio.ensure_future(self._listen())
        self._listener.add_done_callback(self._on_disconnect)

    def _on_disconnect(self, listener: "asyncio.Future[None]") -> None:
        if listener.cancelled():
            return
        error = listener.exception()
        if error is not None and not self._exited:
            self._error = error
            self._delivery.client_disconnected = isinstance(error, RequestAborted)
            self._task.cancel()
