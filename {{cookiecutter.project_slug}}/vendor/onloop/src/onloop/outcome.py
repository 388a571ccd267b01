"""How a request ended: the only code that decides it."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextvars import copy_context
from typing import Any, NamedTuple, Self

from django.core.exceptions import RequestAborted
from django.http import HttpRequest, StreamingHttpResponse
from django.http.response import HttpResponseBase

Send = Callable[[Mapping[str, Any]], Awaitable[None]]

# In the ASGI scope: what the handler knows and the middleware does not.
SCOPE_KEY = "onloop.delivery"


class RequestEnd(NamedTuple):
    """How a request ended, and when.

    ``outcome``
        ``completed``, ``failed`` (a stream raised), ``disconnected`` (by the client)
        or ``cancelled`` (by the server).
    ``status``
        499 if the client disconnected before there was a response; None if the server
        stopped before.
    ``ended``, ``first_byte``
        Readings of ``time.perf_counter()``. Only a stream has a first byte, and none
        if nothing was sent.
    """

    outcome: str
    status: int | None
    ended: float
    first_byte: float | None = None


class Delivery:
    """What became of a response. It leads to no other object, and so to no cycle."""

    client_disconnected = False
    finished = False
    # The request is, finished or not.
    over = False
    # Of a streaming response.
    bytes_sent = 0
    first_byte: float | None = None

    @property
    def cut_short_by(self) -> str:
        """Why a request that nobody finished was cancelled."""
        return "disconnected" if self.client_disconnected else "cancelled"

    def count(self, send: Send) -> Send:
        async def counted(message: Mapping[str, Any]) -> None:
            await send(message)
            if body := message.get("body"):
                self.first_byte = self.first_byte or time.perf_counter()
                self.bytes_sent += len(body)
                # A server sends to a client that disconnected without waiting: give
                # the watcher a chance to hear of it.
                await asyncio.sleep(0)

        return counted


def end_before_response(delivery: Delivery) -> RequestEnd:
    status = 499 if delivery.client_disconnected else None
    return RequestEnd(delivery.cut_short_by, status, time.perf_counter())


class observe:
    """Learn how a request ended, also when its response is a stream.

        with observe(request, on_end) as observation:
            response = observation.response = await self.get_response(request)

    ``on_end`` is called once with a RequestEnd, synchronously and in the request's
    context: when the block ends, or for a streaming response when its last byte was
    sent or nobody sends it any more. Exceptions pass through, CancelledError too.
    """

    response: HttpResponseBase | None = None

    def __init__(
        self, request: HttpRequest, on_end: Callable[[RequestEnd], None]
    ) -> None:
        self._on_end = on_end
        self._is_head = request.method == "HEAD"
        # Neither Django's own handler nor its test clients keep one.
        scope = getattr(request, "scope", None)
        self._delivery: Delivery | None = scope and scope.get(SCOPE_KEY)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: object, exc: BaseException | None, traceback: object
    ) -> None:
        response, delivery = self.response, self._delivery
        if exc is not None:
            self._on_end(self._end_by(exc))
        elif delivery is not None and delivery.client_disconnected:
            # A view that went on all the same: nobody gets its response.
            self._on_end(end_before_response(delivery))
        elif isinstance(response, StreamingHttpResponse):
            content = AsyncContent if response.is_async else SyncContent
            response.streaming_content = content(
                response, delivery, self._on_end, self._is_head
            )
        elif response is not None:
            end = RequestEnd("completed", response.status_code, time.perf_counter())
            self._on_end(end)

    def _end_by(self, exc: BaseException) -> RequestEnd:
        cancelled = isinstance(exc, asyncio.CancelledError) and asyncio.current_task()
        if not cancelled or not cancelled.cancelling():
            # The view's own: nobody cancelled the request.
            return RequestEnd("failed", 500, time.perf_counter())
        if self._delivery is None:
            # That the client disconnected is likelier.
            return RequestEnd("disconnected", 499, time.perf_counter())
        return end_before_response(self._delivery)


class ObservedContent:
    """The content of a streaming response; Django calls close() when it is over."""

    def __init__(
        self,
        response: StreamingHttpResponse,
        delivery: Delivery | None,
        on_end: Callable[[RequestEnd], None],
        is_head: bool,
    ) -> None:
        # Through streaming_content, closing would not reach the view's generator.
        self.content: Any = (
            vars(response).get("_iterator") or response.streaming_content
        )
        # Not the response itself, which leads here.
        self.charset = response.charset
        self.status = response.status_code
        length = response.headers.get("Content-Length", "")
        self.length = int(length) if length.isdigit() else -1
        self.is_head = is_head
        # Django 5.2 closes the response outside of the task that served the request.
        self.context = copy_context()
        self.on_end: Callable[[RequestEnd], None] | None = on_end
        self.delivery = delivery
        # What was taken from it; the delivery knows better, what was sent.
        self.taken = Delivery()
        self.failed = False

    def __del__(self) -> None:
        # Nobody closes a response that another middleware replaced by its own.
        delivery = self.delivery or self.taken
        if not delivery.over and not delivery.client_disconnected:
            self.delivery, self.taken.finished = None, True
        self.close()

    def close(self) -> None:
        """The first call counts."""
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            self.context.run(on_end, self._end())

    def _end(self) -> RequestEnd:
        delivery = self.delivery or self.taken
        if self.failed:
            outcome = "failed"
        # A client may leave as soon as it has all that was announced.
        elif delivery.finished or self.is_head or delivery.bytes_sent == self.length:
            outcome = "completed"
        elif self.delivery is None:
            outcome = "disconnected"
        else:
            outcome = delivery.cut_short_by
        end = time.perf_counter()
        return RequestEnd(outcome, self.status, end, delivery.first_byte)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, exc_type: object, exc: BaseException | None, traceback: object
    ) -> None:
        self.taken.finished = exc is None
        self.failed = isinstance(exc, Exception)
        if exc is not None and self.delivery is None:
            # Django's own handler never closes a response whose stream raised.
            self.close()

    def _count(self, part: object) -> Any:
        if self.delivery is None:
            self.taken.first_byte = self.taken.first_byte or time.perf_counter()
            size = part if isinstance(part, bytes) else str(part).encode(self.charset)
            self.taken.bytes_sent += len(size)
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
                # Or the garbage collector would, later and in another task.
                if hasattr(self.content, "aclose"):
                    await self.content.aclose()


class DisconnectWatcher:
    """Cancels the current task if the client disconnects during the block.

    The task is cancelled as ``asyncio.timeout()`` does it, so that the cleanup of a
    view runs in the request's own task and context.
    """

    _listener: asyncio.Future[None] | None = None
    _error: BaseException | None = None
    _exited = False

    def __init__(
        self, delivery: Delivery, listen: Callable[[], Awaitable[None]]
    ) -> None:
        self._delivery = delivery
        self._listen = listen

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        # A request that never waits is over before the listener would start.
        self._start = asyncio.get_running_loop().call_soon(self._start_listener)
        return self

    async def __aexit__(
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
