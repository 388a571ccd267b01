"""Runs Django's runtests.py on this service's request path.

Its ASGIHandler is ours, and its test clients send every request through the
asynchronous chain: on the synchronous one nothing of ours would run.
"""

import os
import runpy
import sys
from pathlib import Path
from typing import Any
from unittest.loader import TestLoader

import django.core.asgi
import django.core.handlers.asgi
import django.test.client
from asgiref.sync import async_to_sync
from excluded import excluded_by
from serving import handler, inline

seen: set[str] = set()


def witness(what: str) -> None:
    """Tests run in several processes, so what happened is told by a file."""
    if what not in seen:
        seen.add(what)
        with Path(os.environ["JUDGE_EVIDENCE"]).open("a") as evidence:
            evidence.write(f"{what}\n")


class Handler(handler.Handler):
    def load_middleware(self, is_async: bool = False) -> None:
        inline.install()
        super().load_middleware(is_async)

    async def handle(self, *args: Any) -> None:
        witness("handler")
        await super().handle(*args)


class ClientHandler(inline.InlineViewHooks, django.test.client.ClientHandler):
    def load_middleware(self, is_async: bool = True) -> None:
        inline.install()
        super().load_middleware(is_async=True)

    def get_response(self, request: Any) -> Any:
        witness("chain")
        respond = handler.Handler.get_response_async
        return async_to_sync(respond)(self, request)  # type: ignore[arg-type]


class AsyncClientHandler(inline.InlineViewHooks, django.test.client.AsyncClientHandler):
    def load_middleware(self, is_async: bool = True) -> None:
        inline.install()
        super().load_middleware(is_async=True)

    async def get_response_async(self, request: Any) -> Any:
        return await handler.Handler.get_response_async(self, request)  # type: ignore[arg-type]


def witnessed(hook: str, condition: Any) -> Any:
    def answer(middleware: Any, *args: Any) -> bool:
        free: bool = condition(middleware, *args)
        place = "inline" if free else "in a thread"
        witness(f"{type(middleware).__name__}.{hook} {place}")
        return free

    return answer if condition else None


def witnessed_hooks(hooks: inline.Hooks) -> inline.Hooks:
    return hooks._replace(
        process_request=witnessed("process_request", hooks.process_request),
        process_response=witnessed("process_response", hooks.process_response),
    )


def csrf_check_is_inline(
    *args: Any, original: Any = inline.csrf_check_is_inline
) -> bool:
    free: bool = original(*args)
    witness(f"csrf view {'inline' if free else 'in a thread'}")
    return free


def case_names(
    self: TestLoader, cls: Any, original: Any = TestLoader.getTestCaseNames
) -> list[str]:
    names = []
    for name in original(self, cls):
        test = f"{cls.__module__}.{cls.__qualname__}.{name}"
        if pattern := excluded_by(test):
            witness(f"excluded {pattern}")
        else:
            names.append(name)
    return names


if __name__ == "__main__":
    for owner, name, ours in (
        (inline, "HOOKS", {p: witnessed_hooks(h) for p, h in inline.HOOKS.items()}),
        (inline, "csrf_check_is_inline", csrf_check_is_inline),
        (TestLoader, "getTestCaseNames", case_names),
        (django.core.handlers.asgi, "ASGIHandler", Handler),
        (django.core.asgi, "ASGIHandler", Handler),
        (django.test.client, "ClientHandler", ClientHandler),
        (django.test.client, "AsyncClientHandler", AsyncClientHandler),
    ):
        setattr(owner, name, ours)
    runtests = Path.cwd() / "runtests.py"
    sys.argv[0] = str(runtests)
    sys.path.insert(0, str(runtests.parent))
    runpy.run_path(str(runtests), run_name="__main__")
