"""A plain sentry_sdk.init() reports what it reports of stock Django."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import sentry_sdk  # type: ignore[import-not-found]
from django.contrib.auth.models import User
from django.test import AsyncClient
from request_path.conftest import fetch
from serving import inline
from serving.handler import Handler

from .backend import Event, events
from .urls import NUMBERS


@pytest.fixture
async def handler() -> AsyncIterator[Handler]:
    inline.install()
    handler = Handler()
    yield handler
    await handler.threads.shutdown()


async def session_cookie(username: str) -> str:
    client = AsyncClient()
    await client.aforce_login(await User.objects.acreate(username=username))
    return f"sessionid={client.cookies['sessionid'].value}"


@pytest.mark.django_db(transaction=True)
async def test_concurrent_errors_carry_their_own_user_url_and_transaction(
    handler: Handler,
) -> None:
    cookies = [await session_cookie(f"user{number}") for number in NUMBERS]
    async with asyncio.timeout(60):
        answers = await asyncio.gather(
            *(
                fetch(handler, f"/fail/{number}/", headers={"cookie": cookie})
                for number, cookie in enumerate(cookies)
            )
        )
    assert {answer.status for answer in answers} == {500}
    await asyncio.to_thread(sentry_sdk.flush, 10)
    assert sorted(map(told, events["event"])) == sorted(
        (f"user{number}", f"http://testserver/fail/{number}/", f"/fail/{number}/")
        for number in NUMBERS
    )
    transactions = [event["transaction"] for event in events["transaction"]]
    assert sorted(transactions) == sorted(f"/fail/{number}/" for number in NUMBERS)


def told(event: Event) -> tuple[str, str, str]:
    user, request = event.get("user", {}), event.get("request", {})
    told = user.get("username"), request.get("url"), event.get("transaction")
    return str(told[0]), str(told[1]), str(told[2])
