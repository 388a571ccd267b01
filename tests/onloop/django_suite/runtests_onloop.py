"""Run Django's runtests.py on onloop; called by run.py.

Its ASGIHandler is onloop's, and its test clients send every request through the
asynchronous chain, because onloop is not involved in the synchronous one.
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
from onloop import handler, inlining

seen: set[str] = set()


def record_evidence(what: str) -> None:
    """Counted in a file, because the tests run in several processes."""
    if what not in seen:
        seen.add(what)
        with Path(os.environ["ONLOOP_EVIDENCE"]).open("a") as evidence:
            evidence.write(f"{what}\n")


class ASGIHandler(handler.ASGIHandler):
    async def handle(self, *args: Any) -> None:
        record_evidence("handler")
        await super().handle(*args)


class ClientHandler(inlining.InliningHandler, django.test.client.ClientHandler):
    def load_middleware(self, is_async: bool = True) -> None:
        super().load_middleware(is_async=True)

    def get_response(self, request: Any) -> Any:
        record_evidence("client")
        respond = handler.ASGIHandler.get_response_async
        return async_to_sync(respond)(self, request)  # type: ignore[arg-type]


class AsyncClientHandler(
    inlining.InliningHandler, django.test.client.AsyncClientHandler
):
    async def get_response_async(self, request: Any) -> Any:
        record_evidence("async client")
        return await handler.ASGIHandler.get_response_async(self, request)  # type: ignore[arg-type]


def recorded(hook: str, condition: Any) -> Any:
    def recorded_condition(middleware: Any, *args: Any) -> bool:
        is_inline: bool = condition(middleware, *args)
        place = "inline" if is_inline else "in a thread"
        record_evidence(f"{type(middleware).__name__}.{hook} {place}")
        return is_inline

    return recorded_condition if condition else None


def recorded_hooks(hooks: inlining.Hooks) -> inlining.Hooks:
    return hooks._replace(
        process_request=recorded("process_request", hooks.process_request),
        process_response=recorded("process_response", hooks.process_response),
    )


def recorded_view(hook: Any) -> Any:
    def wrap(middleware: Any, method: Any) -> Any:
        process_view = hook(middleware, method)

        async def recorded_process_view(request: Any, *view: Any) -> Any:
            response = await process_view(request, *view)
            if not hasattr(request, "csrf_condition_asked"):
                # Accepted in any case.
                record_evidence("csrf view inline")
            return response

        return recorded_process_view

    return wrap


def csrf_check_is_inline(
    request: Any, original: Any = inlining.csrf_check_is_inline
) -> bool:
    request.csrf_condition_asked = True
    is_inline: bool = original(request)
    record_evidence(f"csrf view {'inline' if is_inline else 'in a thread'}")
    return is_inline


def case_names(
    self: TestLoader, cls: Any, original: Any = TestLoader.getTestCaseNames
) -> list[str]:
    names = []
    for name in original(self, cls):
        test = f"{cls.__module__}.{cls.__qualname__}.{name}"
        if pattern := excluded_by(test):
            record_evidence(f"excluded {pattern}")
        else:
            names.append(name)
    return names


if __name__ == "__main__":
    HOOKS = {path: recorded_hooks(hooks) for path, hooks in inlining.HOOKS.items()}
    csrf = HOOKS["django.middleware.csrf.CsrfViewMiddleware"]
    HOOKS["django.middleware.csrf.CsrfViewMiddleware"] = csrf._replace(
        process_view=recorded_view(csrf.process_view)
    )
    # inline() knows this condition by identity.
    locale = HOOKS["django.middleware.locale.LocaleMiddleware"].process_request
    for owner, name, replacement in (
        (inlining, "HOOKS", HOOKS),
        (inlining, "catalogs_loaded", locale),
        (inlining, "csrf_check_is_inline", csrf_check_is_inline),
        (TestLoader, "getTestCaseNames", case_names),
        (django.core.handlers.asgi, "ASGIHandler", ASGIHandler),
        (django.core.asgi, "ASGIHandler", ASGIHandler),
        (django.test.client, "ClientHandler", ClientHandler),
        (django.test.client, "AsyncClientHandler", AsyncClientHandler),
    ):
        setattr(owner, name, replacement)
    runtests = Path.cwd() / "runtests.py"
    sys.argv[0] = str(runtests)
    sys.path.insert(0, str(runtests.parent))
    runpy.run_path(str(runtests), run_name="__main__")
