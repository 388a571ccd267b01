"""A request that ends during a transaction; also on PostgreSQL, with DATABASE_URL."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.db import connection, transaction
from onloop.handler import ASGIHandler
from onloop.threads import ThreadPool

from . import views
from .conftest import Conversation, fetch, until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
async def pool() -> AsyncIterator[ThreadPool]:
    pool = ThreadPool()
    yield pool
    await pool.shutdown()


def begin() -> threading.Thread:
    transaction.atomic().__enter__()
    User.objects.create(username="half made")
    return threading.current_thread()


async def idle(pool: ThreadPool) -> None:
    await until(lambda: len(pool._idle) == 1)


async def usernames(pool: ThreadPool) -> list[str]:
    users = User.objects.order_by("username")
    with pool.thread():
        return [user.username async for user in users]


async def test_requests_write_after_one_whose_client_left_amid_a_transaction(
    handler: ASGIHandler, pool: ThreadPool
) -> None:
    conversation = Conversation("/half-a-transaction/")
    task = conversation.start(handler)
    await views.arrived.wait()
    conversation.leave()
    await task
    answers = [await fetch(handler, f"/write/{number}/") for number in range(6)]
    assert [answer.status for answer in answers] == [200] * 6
    assert await usernames(pool) == ["0", "1", "2", "3", "4", "5"]


async def test_transaction_amid_which_a_request_ends_is_rolled_back(
    pool: ThreadPool,
) -> None:
    with pool.thread():
        await sync_to_async(begin)()
    await idle(pool)
    assert await usernames(pool) == []


async def test_transaction_that_a_running_call_leaves_open_is_rolled_back(
    pool: ThreadPool,
) -> None:
    threads: list[threading.Thread] = []
    gate = threading.Event()

    def call() -> None:
        threads.append(begin())
        gate.wait(10)

    async def request() -> None:
        with pool.thread():
            await sync_to_async(call)()

    task = asyncio.create_task(request())
    await until(lambda: bool(threads))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not pool._idle
    gate.set()
    await idle(pool)
    assert await usernames(pool) == []


async def test_thread_whose_transaction_was_completed_is_reused(
    pool: ThreadPool,
) -> None:
    def call() -> threading.Thread:
        with transaction.atomic():
            User.objects.create(username="made")
        return threading.current_thread()

    with pool.thread():
        first = await sync_to_async(call)()
    with pool.thread():
        assert await sync_to_async(threading.current_thread)() is first


async def test_transaction_on_a_connection_of_another_thread_is_left_to_it(
    pool: ThreadPool,
) -> None:
    def call() -> None:
        connection.inc_thread_sharing()
        transaction.atomic().__enter__()

    with pool.thread():
        await sync_to_async(call)()
    await idle(pool)
