"""A project that logs difficult lines, served by uvicorn."""

import asyncio
import logging
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.onloop.settings")

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from onloop.asgi import get_asgi_application

logger = logging.getLogger("log")
release = threading.Event()


def child(kind: str) -> None:
    logger.info("in a child", extra={"kind": kind})


def fork() -> None:
    if (pid := os.fork()) == 0:
        child("os.fork")
        # multiprocessing skips this, which an interpreter does when it exits.
        logging.shutdown()
        os._exit(0)
    os.waitpid(pid, 0)


def in_children() -> None:
    logger.info("in the parent")
    fork()
    for method in ("fork", "forkserver"):
        context: Any = multiprocessing.get_context(method)
        process = context.Process(target=child, args=(method,))
        process.start()
        process.join()
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        pool.submit(child, "pool").result()
    logger.info("children ended")


async def children(request: HttpRequest) -> HttpResponse:
    threading.Thread(target=in_children).start()
    return HttpResponse()


async def lazy(request: HttpRequest) -> HttpResponse:
    logger.info("lazy", extra={"user": request.user, "path": request.path})
    return HttpResponse()


async def lines(request: HttpRequest, count: int) -> HttpResponse:
    for number in range(count):
        logger.info("line", extra={"number": number, "padding": "x" * 200})
    return HttpResponse()


async def lines_at_the_end(request: HttpRequest, count: int) -> HttpResponse:
    logger.info("waits", extra={"pid": os.getpid()})
    server: Any = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    while not server.should_exit:
        await asyncio.sleep(0.01)
    # uvicorn logs a line about it first.
    await asyncio.sleep(0.2)
    await lines(request, count)
    return await wait(request)


@csrf_exempt
async def error(request: HttpRequest) -> HttpResponse:
    body = request.body
    raise ValueError(len(body))


async def wait(request: HttpRequest) -> HttpResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def fill_executor(request: HttpRequest) -> HttpResponse:
    loop = asyncio.get_running_loop()
    for _ in range(100):
        loop.run_in_executor(None, release.wait, 60)
    return HttpResponse()


urlpatterns = [
    path("children/", children),
    path("lazy/", lazy),
    path("lines/<int:count>/", lines),
    path("lines-at-the-end/<int:count>/", lines_at_the_end),
    path("error/", error),
    path("wait/", wait),
    path("fill-executor/", fill_executor),
]
settings.ROOT_URLCONF = __name__
LOGGING: Any = settings.LOGGING
LOGGING["root"]["level"] = "INFO"
LOGGING["loggers"]["uvicorn"] = {"handlers": [], "propagate": True}
application = get_asgi_application()
