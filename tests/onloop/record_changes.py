"""Print, as JSON, what a request changed in Django, asgiref and uvicorn.

    python record_changes.py stock|installed|onloop

"stock" is Django's handler; with "installed", onloop is in INSTALLED_APPS; with
"onloop", all of it is imported and its handler serves.
"""

import asyncio
import json
import signal
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pkgutil import walk_packages
from types import FunctionType, ModuleType
from typing import Any

PACKAGES = {"django", "asgiref", "uvicorn"}
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
# By module: its attributes when it had just been executed.
before: dict[str, dict[str, Any]] = {}


class Recorder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Any = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] not in PACKAGES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_record(module: ModuleType) -> None:
                execute(module)
                before[name] = dict(attributes(module))

            spec.loader.exec_module = execute_and_record  # type: ignore[method-assign]
        return spec


def attributes(module: ModuleType) -> Iterator[tuple[str, Any]]:
    for name, value in list(vars(module).items()):
        # The import of a submodule puts it there.
        if not is_a(value, ModuleType):
            path = f"{module.__name__}.{name}"
            yield path, value
            if is_a(value, FunctionType, type) and value.__module__ == module.__name__:
                yield from parts(path, value)


def parts(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What can be changed in a class or a function without replacing it."""
    if is_a(value, FunctionType):
        for name in ("__code__", "__defaults__", "__kwdefaults__"):
            yield f"{path}.{name}", getattr(value, name)
    for name, inner in list(vars(value).items()):
        yield f"{path}.{name}", inner
        if is_a(inner, FunctionType, type) and (
            inner.__qualname__ == f"{value.__qualname__}.{name}"
        ):
            yield from parts(f"{path}.{name}", inner)


def is_a(value: object, *kinds: type) -> bool:
    """Does not read __class__, which would evaluate lazy objects."""
    return issubclass(type(value), kinds)


def changes() -> Iterator[str]:
    missing = object()
    for name, old in before.items():
        new = dict(attributes(sys.modules[name]))
        for path in old | new:
            if old.get(path, missing) is not new.get(path, missing):
                yield path


def signal_handlers() -> list[str]:
    handlers = (signal.getsignal(number) for number in SIGNALS)
    return [getattr(handler, "__qualname__", str(handler)) for handler in handlers]


def configure(mode: str) -> Any:
    """The settings that startproject writes."""
    from django.conf import settings

    settings.configure(
        SECRET_KEY="only for tests",
        ALLOWED_HOSTS=["127.0.0.1"],
        ROOT_URLCONF="record_changes",
        INSTALLED_APPS=[
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "django.contrib.messages",
            *(["onloop"] if mode != "stock" else []),
        ],
        MIDDLEWARE=[
            "django.middleware.security.SecurityMiddleware",
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.common.CommonMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
            "django.middleware.clickjacking.XFrameOptionsMiddleware",
        ],
    )
    if mode == "onloop":
        from onloop.asgi import get_asgi_application
    else:
        from django.core.asgi import get_asgi_application
    application = get_asgi_application()
    if mode == "onloop":
        import onloop

        for module in walk_packages(onloop.__path__, "onloop."):
            import_module(module.name)
    return application


class URLconf:
    """Like a module: with onloop's handler, the loop has it imported by then."""

    @property
    def urlpatterns(self) -> list[Any]:
        from django.http import HttpResponse
        from django.urls import path

        async def view(request: Any) -> HttpResponse:
            return HttpResponse(json.dumps(signal_handlers()))

        return [path("", view)]


async def get(port: int) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    assert head.startswith(b"HTTP/1.1 200"), head
    return body.decode()


async def serve(application: Any) -> dict[str, Any]:
    import uvicorn

    seen: dict[str, Any] = {}
    server = uvicorn.Server(uvicorn.Config(application, port=0, log_level="warning"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    seen["signals in a view"] = json.loads(await get(port))
    seen["changes"] = sorted(changes())
    seen["thread hops"] = await count_thread_hops(port)
    server.should_exit = True
    await serving
    return seen


async def count_thread_hops(port: int) -> int:
    from unittest.mock import patch

    from asgiref.sync import AsyncToSync, SyncToAsync

    count = 0

    def counting(call: Any) -> Any:
        def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            return call(self, *args, **kwargs)

        return __call__

    with (
        patch.object(SyncToAsync, "__call__", counting(SyncToAsync.__call__)),
        patch.object(AsyncToSync, "__call__", counting(AsyncToSync.__call__)),
    ):
        await get(port)
    return count


def main(mode: str) -> dict[str, Any]:
    # So that later changes to it are recorded.
    import_module("uvicorn")
    seen: dict[str, Any] = {"signals before": signal_handlers()}
    application = configure(mode)
    handler = type(application)
    seen["handler"] = f"{handler.__module__}.{handler.__qualname__}"
    seen["signals after"] = signal_handlers()
    return seen | asyncio.run(serve(application))


if __name__ == "__main__":
    sys.modules["record_changes"] = URLconf()  # type: ignore[assignment]
    sys.meta_path.insert(0, Recorder())
    print(json.dumps(main(sys.argv[1])))
