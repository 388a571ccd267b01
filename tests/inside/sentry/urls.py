"""A route for each request, so that each has a transaction's name of its own."""

import asyncio

from asgiref.sync import sync_to_async
from django.http import HttpRequest, HttpResponse
from django.urls import path

NUMBERS = range(24)
everybody = asyncio.Barrier(len(NUMBERS))


async def fail(request: HttpRequest) -> HttpResponse:
    await sync_to_async(str)(request.user)
    # None ends before all of them have begun.
    await everybody.wait()
    raise ArithmeticError("on purpose")


urlpatterns = [path(f"fail/{number}/", fail) for number in NUMBERS]
