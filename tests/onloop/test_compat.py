"""What onloop needs from Django's internals, and how it serves without that."""

import ast
import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from traceback import TracebackException
from types import CodeType, FunctionType, MethodType, ModuleType, TracebackType
from typing import Any

import django
import onloop
import pytest
from django.http import HttpRequest, StreamingHttpResponse
from onloop import _compat
from onloop.asgi import get_asgi_application
from onloop.outcome import RequestEnd, observe

PLAIN = [
    (module, name)
    for module, names in _compat.NAMES.items()
    for name in names.split()
    if "#" not in name
]
INSIDE = [
    (module, name)
    for module, names in _compat.NAMES.items()
    for name in names.split()
    if "#" in name
]


def test_installed_versions_have_no_problem() -> None:
    assert list(_compat.problems()) == []
    assert _compat.PROBLEM is None


# Every listed name is needed.


@pytest.mark.parametrize(("module", "name"), PLAIN)
def test_missing_name_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    *path, last = name.split(".")
    owner: Any = import_module(module)
    for part in path:
        owner = getattr(owner, part)
    monkeypatch.delattr(owner, last)
    problems = list(_compat.problems())
    monkeypatch.undo()
    assert problems == [f"{module}.{name} is missing"]


@pytest.mark.parametrize(("module", "name"), INSIDE)
def test_attribute_that_a_method_does_not_know_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    monkeypatch.setattr(_compat, "NAMES", {module: f"{name}_renamed"})
    path, _, attribute = name.partition("#")
    assert list(_compat.problems()) == [
        f"{module}.{path} -> {attribute}_renamed is missing"
    ]


def test_missing_module_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compat, "NAMES", {"django.core.nowhere": "name"})
    assert list(_compat.problems()) == ["django.core.nowhere.name is missing"]


@pytest.mark.parametrize("version", [(5, 1, 9, "final", 0), (9, 9, 0, "alpha", 0)])
def test_version_that_was_not_tested_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, version: Any
) -> None:
    monkeypatch.setattr(django, "VERSION", version)
    [problem] = _compat.problems()
    assert problem.startswith(f"it was not tested with Django {version[0]}.")


# Every private name is listed.

SOURCE = Path(onloop.__file__).parent
# They run in tests only, where a missing name fails without harm to a server.
TESTS_ONLY = {"_blocking.py", "_isolation.py", "pytest_plugin.py"}
PYTHONS = {
    *(name for kind in (object, type, FunctionType, MethodType) for name in dir(kind)),
    *(name for kind in (ModuleType, CodeType, TracebackType) for name in dir(kind)),
    *dir(RequestEnd),
    *dir(TracebackException(Exception, Exception(), None)),
    *dir(sys),
    *("__wrapped__", "__getitem__", "__path__", "__file__", "__await__"),
}
OTHERS = {
    # What structlog puts into a record.
    *("_logger", "_name"),
    # Names that are looked for in a project's source.
    *("_is_coroutine", "_is_coroutine_mark"),
}


def trees() -> Iterator[tuple[str, ast.AST]]:
    for path in sorted(SOURCE.rglob("*.py")):
        if path.name not in {*TESTS_ONLY, "_compat.py"}:
            yield path.name, ast.parse(path.read_text(encoding="utf-8"))


def used(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        # A method may override one of Django's.
        elif isinstance(node, ast.alias | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Name):
            yield node.id


def defined(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(
            node.ctx, ast.Store
        ):
            yield node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.alias):
            yield node.name


def listed() -> set[str]:
    entries = [name for names in _compat.NAMES.values() for name in names.split()]
    return {part for entry in entries for part in entry.replace("#", ".").split(".")}


def test_every_private_name_that_serves_is_listed() -> None:
    own = {name for _, tree in trees() for name in defined(tree)}
    known = own | listed() | PYTHONS | OTHERS
    missing = {
        (file, name)
        for file, tree in trees()
        for name in used(tree)
        if name.startswith("_") and name.isidentifier() and name not in known
    }
    assert missing == set()


def test_every_private_name_that_a_class_overrides_is_listed() -> None:
    missing = set()
    for file, _ in trees():
        if file in {"__init__.py", "middleware.py", "runserver.py"}:
            continue
        [path] = SOURCE.rglob(file)
        parts = path.relative_to(SOURCE).with_suffix("").parts
        module = import_module(".".join(["onloop", *parts]))
        for cls in vars(module).values():
            if isinstance(cls, type) and cls.__module__ == module.__name__:
                bases = [
                    base
                    for base in cls.__mro__[1:]
                    if base.__module__.startswith(("django.", "asgiref."))
                ]
                missing |= {
                    f"{cls.__name__}.{name}"
                    for name in vars(cls)
                    if name.startswith("_")
                    and name not in PYTHONS
                    and any(name in vars(base) for base in bases)
                }
    assert {name for name in missing if name.split(".")[1] not in listed()} == set()


def test_every_name_that_is_listed_is_used() -> None:
    everything = {name for _, tree in trees() for name in used(tree)}
    unused = {
        entry
        for names in _compat.NAMES.values()
        for entry in names.split()
        if entry.replace("#", ".").rpartition(".")[2] not in everything
    }
    assert unused == set()


# How onloop serves without one of the names.


PROJECT = """
import asyncio, gc, json, logging, sys
import django
import django.core.handlers.asgi
from django.conf import settings

settings.configure(
    SECRET_KEY="only for tests",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF="__main__",
    INSTALLED_APPS=["onloop"],
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    LOGGING_CONFIG=None,
)
CHANGES
from onloop.asgi import get_asgi_application

records = []
handler = logging.Handler()
handler.emit = records.append
logging.getLogger().addHandler(handler)
application = get_asgi_application()

from django.core.management import call_command
from django.http import HttpResponse
from django.urls import path

async def view(request):
    return HttpResponse("served")

urlpatterns = [path("", view)]

async def serve():
    sent = []
    async def receive():
        if sent or receive.asked:
            await asyncio.Event().wait()
        receive.asked = True
        return {"type": "http.request", "body": b"", "more_body": False}
    receive.asked = False
    async def send(message):
        sent.append(message)
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"",
             "headers": [(b"host", b"testserver")]}
    await application(scope, receive, send)
    return sent[1]["body"].decode()

call_command("check", stdout=sys.stderr)
print(json.dumps({
    "handler": type(application).__module__,
    "records": [[r.name, r.levelname, r.getMessage()] for r in records],
    "body": asyncio.run(serve()),
    "calls": globals().get("calls"),
    "collects": gc.isenabled(),
    "named": sys.modules["django.core.asgi"].ASGIHandler.__module__,
}))
"""


def run_project(changes: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", PROJECT.replace("CHANGES", changes)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    assert seen["body"] == "served"
    return seen


def test_known_django_is_served_by_onloop() -> None:
    seen = run_project("")
    assert seen["handler"] == "onloop.handler"
    assert seen["records"] == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ("django.VERSION = (9, 9, 0, 'final', 0)", "Django 9.9"),
        # Names that Django itself no longer needs once it is imported.
        (
            "import django.core.cache; del django.core.cache.close_caches",
            "django.core.cache.close_caches is missing",
        ),
        (
            "import django.core.handlers.base as base; del base.reset_urlconf",
            "django.core.handlers.base.reset_urlconf is missing",
        ),
        (
            "import django.db; del django.db.reset_queries",
            "django.db.reset_queries is missing",
        ),
        (
            "import django.middleware.csrf as c; del c.CsrfViewMiddleware._reject",
            "django.middleware.csrf.CsrfViewMiddleware._reject is missing",
        ),
    ],
)
def test_unknown_django_serves_and_checks_with_its_own_handler(
    changes: str, problem: str
) -> None:
    seen = run_project(changes)
    assert seen["handler"] == "django.core.handlers.asgi"
    [[name, level, message]] = seen["records"]
    assert (name, level) == ("onloop.asgi", "WARNING")
    assert problem in message


INSTRUMENTED = """
from functools import wraps
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.base import BaseHandler
import django.core.asgi as asgi
calls = []
def replace(owner, name):
    call = getattr(owner, name)
    @wraps(call)
    def wrapper(*args, **kwargs):
        calls.append(name)
        return call(*args, **kwargs)
    setattr(owner, name, wrapper)
"""


@pytest.mark.parametrize(
    "replaced",
    [
        [("ASGIHandler", "__call__")],
        [("BaseHandler", "get_response_async")],
        [("BaseHandler", "load_middleware")],
        [("ASGIHandler", "__call__"), ("BaseHandler", "get_response_async")],
        # ddtrace wraps the handler in its own application.
        [("asgi", "get_asgi_application"), ("ASGIHandler", "__call__")],
    ],
)
def test_instrumentation_is_called_and_no_unknown_django(
    replaced: list[tuple[str, str]],
) -> None:
    lines = [f"replace({owner}, {name!r})" for owner, name in replaced]
    seen = run_project(INSTRUMENTED + "\n".join(lines))
    assert seen["handler"] == "onloop.handler"
    assert seen["records"] == []
    assert seen["calls"] == [name for _, name in replaced]
    # Restored.
    assert seen["named"] == "django.core.handlers.asgi"


def test_instrumentation_of_an_unknown_django_is_called() -> None:
    unknown = "django.VERSION = (9, 9, 0, 'final', 0)\n"
    seen = run_project(f"{unknown}{INSTRUMENTED}replace(asgi, 'get_asgi_application')")
    assert seen["handler"] == "django.core.handlers.asgi"
    assert seen["calls"] == ["get_asgi_application"]


WATCHED = """
calls, setup = [], django.setup

def watched(**options):
    calls.append(gc.isenabled())
    setup(**options)

django.setup = watched
"""


@pytest.mark.parametrize(("before", "collects"), [("", True), ("gc.disable()", False)])
def test_no_garbage_is_collected_while_django_is_loaded(
    before: str, collects: bool
) -> None:
    seen = run_project(WATCHED + before)
    assert seen["calls"] == [False]
    assert seen["collects"] is collects


def test_garbage_is_collected_when_django_could_not_be_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(django, "setup")
    with pytest.raises(AttributeError):
        get_asgi_application()
    assert gc.isenabled()


class Renamed(StreamingHttpResponse):
    """Like a Django version that uses another name for the content."""

    _iterator = property(
        lambda self: vars(self)["_parts"],
        lambda self, parts: vars(self).update(_parts=parts),
    )


async def test_stream_of_an_unknown_django_is_observed() -> None:
    async def parts() -> Any:
        yield "f\u00fcrst"
        yield b"last"

    ends: list[RequestEnd] = []
    response = Renamed(parts())
    assert "_iterator" not in vars(response)
    with observe(HttpRequest(), ends.append) as observation:
        observation.response = response
    assert [part async for part in response] == ["f\u00fcrst".encode(), b"last"]
    assert ends == []
    response.close()
    assert [end[:2] for end in ends] == [("completed", 200)]
