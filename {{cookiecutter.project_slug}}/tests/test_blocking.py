"""tests/blocking.py sees what holds up the event loop."""

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient
from django.urls import path

from tests.blocking import Blocked, blocked

pytestmark = pytest.mark.urls(__name__)


def sleep() -> None:
    time.sleep(0.01)


def read() -> None:
    with open(__file__) as file:
        file.read()


def connect() -> None:
    with socket.socket() as client, suppress(OSError):
        client.connect(("127.0.0.1", 1))


def look_up() -> None:
    socket.getaddrinfo("localhost", 80)


CALLS = {
    sleep: "time.sleep",
    read: "io.TextIOWrapper.read",
    connect: "socket.socket.connect",
    look_up: "socket.getaddrinfo",
}


async def slow(request: HttpRequest) -> HttpResponse:
    sleep()
    return HttpResponse()


urlpatterns = [path("slow/", slow)]


@pytest.mark.parametrize("call", CALLS, ids=CALLS.values())
async def test_blocking_call_is_named_with_its_line(call: Callable[[], Any]) -> None:
    with pytest.raises(Blocked) as caught:
        call()
    blocked.clear()
    line = call.__code__.co_firstlineno + 1 + (call in (read, connect))
    message = str(caught.value)
    assert message.startswith(f"{CALLS[call]} blocks the event loop")
    assert f"tests/test_blocking.py:{line} in {call.__name__}(): `" in message
    assert f'add ("tests/test_blocking.py", "{call.__name__}")' in message


async def test_blocking_view_fails_its_test(async_client: AsyncClient) -> None:
    with pytest.raises(Blocked, match=r"in sleep\(\): `time\.sleep\(0\.01\)`"):
        await async_client.get("/slow/")
    blocked.clear()


async def test_what_django_answered_with_500_is_kept_for_the_test(
    async_client: AsyncClient,
) -> None:
    async_client.raise_request_exception = False
    assert (await async_client.get("/slow/")).status_code == 500
    [error] = blocked
    assert str(error).startswith("time.sleep")
    blocked.clear()


@pytest.mark.parametrize("call", CALLS, ids=CALLS.values())
async def test_thread_may_block(call: Callable[[], Any]) -> None:
    await sync_to_async(call)()
    await asyncio.to_thread(Path(__file__).read_text)


def test_synchronous_code_may_block() -> None:
    sleep()
