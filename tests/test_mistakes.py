"""Whoever slows a new service down, or breaks its requests, is told how to mend it."""

import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import Bake
from tests.service import Service, finish

CLASS = """
from asgiref.sync import markcoroutinefunction


class Tutorial:
    async_capable = True
    sync_capable = False

    def __init__(self, get_response):
        self.get_response = get_response
        markcoroutinefunction(self)

    {call}
"""
UNMARKED = re.sub(r"(?m)^ +(async_c|sync_c|markc).*\n", "", CLASS)
AWAITED = """async def __call__(self, request):
        response = await self.get_response(request)
        response["X-Tutorial"] = "1"
        return response
"""
UNAWAITED = AWAITED.replace("await ", "")
SYNCHRONOUS = UNAWAITED.replace("async ", "")
FUNCTION = """
import time


def tutorial(get_response):
    def middleware(request):
        time.sleep(0.01)
        return get_response(request)

    return middleware
"""
SLEEPING = "import time\n" + CLASS.format(
    call=AWAITED.replace("response = ", f"time.sleep(0.01)\n{' ' * 8}response = ")
)
ASYNC_FUNCTION = """
import time

from django.utils.decorators import async_only_middleware


@async_only_middleware
def tutorial(get_response):
    async def middleware(request):
        time.sleep(0.01)
        return await get_response(request)

    return middleware
"""
CHECK = "uv run --no-sync manage.py check"
TEST = "uv run --no-sync pytest -p no:cacheprovider tests/test_home.py"


class Mistake(NamedTuple):
    command: str
    # What the report says, in this order.
    says: list[str]
    middleware: str = ""
    source: str = ""
    view: str = ""


MISTAKES = {
    "async call, unmarked": Mistake(
        CHECK,
        ["'home.middleware.Tutorial'", "HINT:", "async_capable = True", "markcorou"],
        "home.middleware.Tutorial",
        UNMARKED.format(call=AWAITED),
    ),
    "async call, unmarked, without await": Mistake(
        CHECK,
        ["'home.middleware.Tutorial'", "HINT:", "response = await self.get_response("],
        "home.middleware.Tutorial",
        UNMARKED.format(call=UNAWAITED),
    ),
    "sync call in an async-flagged class": Mistake(
        CHECK,
        ["'home.middleware.Tutorial'", "HINT:", "write `async def` and `await`"],
        "home.middleware.Tutorial",
        CLASS.format(call=SYNCHRONOUS),
    ),
    "blocking function": Mistake(
        CHECK,
        ["'home.middleware.tutorial' is synchronous", "1 thread hop", "HINT:"],
        "home.middleware.tutorial",
        FUNCTION,
    ),
    "blocking function, flagged async": Mistake(
        TEST,
        ["time.sleep blocks the event loop", "home/middleware.py:", "MAY_BLOCK"],
        "home.middleware.tutorial",
        ASYNC_FUNCTION,
    ),
    "requests.get in a view": Mistake(
        TEST.replace("pytest", "--with requests python -m pytest", 1),
        ["blocks the event loop", "home/views.py:", "`requests.get(", "Await"],
        view="import requests\n    requests.get('http://127.0.0.1:9/')",
    ),
    "time.sleep in a middleware": Mistake(
        TEST,
        ["time.sleep blocks", "home/middleware.py:", "`time.sleep(0.01)`", "Await"],
        "home.middleware.Tutorial",
        SLEEPING,
    ),
    "open().read() in a view": Mistake(
        TEST,
        [
            "io.TextIOWrapper.read blocks",
            "home/views.py:",
            "`open(__file__).read",
            "Aw",
        ],
        view="open(__file__).read()",
    ),
    "sync-only third-party middleware": Mistake(
        CHECK.replace("--no-sync", "--no-sync --with whitenoise"),
        ["'whitenoise.middleware.WhiteNoiseMiddleware' is synchronous", "1 thread hop"],
        "whitenoise.middleware.WhiteNoiseMiddleware",
    ),
}


@pytest.fixture(scope="module")
def installed(bake: Bake) -> Service:
    service = bake(deploy="none", ci="none")
    service.run("uv sync")
    return service


@pytest.fixture
def copy(installed: Service, tmp_path: Path) -> Service:
    """As generated, in the environment of the one that it is copied from."""
    ignored = shutil.ignore_patterns(".venv", "*_cache", "__pycache__")
    path = shutil.copytree(installed.path, tmp_path / "service", ignore=ignored)
    (path / ".venv").symlink_to(installed.path / ".venv")
    return Service(path, installed.answers)


def add(copy: Service, middleware: str) -> None:
    settings = copy.path / "config" / "settings.py"
    entry = '    "django.middleware.common.CommonMiddleware",\n'
    text = settings.read_text(encoding="utf-8")
    assert entry in text
    text = text.replace(entry, f'    "{middleware}",\n{entry}')
    settings.write_text(text, encoding="utf-8")


def begin_hello_with(copy: Service, statement: str) -> None:
    views = copy.path / "home" / "views.py"
    line = '    return JsonResponse({"hello": name})\n'
    text = views.read_text(encoding="utf-8")
    assert line in text
    views.write_text(text.replace(line, f"    {statement}\n{line}"), encoding="utf-8")


@pytest.mark.xdist_group("mistakes")
@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_reported_with_its_fix(copy: Service, name: str) -> None:
    mistake = MISTAKES[name]
    if mistake.source:
        (copy.path / "home" / "middleware.py").write_text(mistake.source)
    if mistake.middleware:
        add(copy, mistake.middleware)
    if mistake.view:
        begin_hello_with(copy, mistake.view)
    done = finish(mistake.command.split(), copy.path, copy.environment, timeout=120)
    said = ".*".join(re.escape(part) for part in mistake.says)
    assert re.search(said, done.stdout, re.DOTALL), done.stdout
    warned = "WARNINGS:" in done.stdout
    assert warned if done.returncode == 0 else done.returncode == 1


@pytest.mark.xdist_group("mistakes")
def test_middlewares_of_the_readme_stay_on_the_loop(copy: Service) -> None:
    examples = "\n".join(copy.readme_python())
    (copy.path / "home" / "middleware.py").write_text(examples)
    add(copy, "home.middleware.GreetingMiddleware")
    add(copy, "home.middleware.weather")
    run = "uv run --no-sync --with httpx manage.py"
    table = copy.run(f"{run} middleware --fail-on-hops")
    for name in ("GreetingMiddleware", "weather"):
        assert re.search(rf"home\.middleware\.{name} +on the loop", table)
    assert "no issues" in copy.run(f"{run} check --fail-level WARNING")


@pytest.mark.xdist_group("mistakes")
def test_slow_callback_is_logged_like_everything_else(copy: Service) -> None:
    begin_hello_with(copy, "__import__('time').sleep(0.2)")
    debug = {"PYTHONASYNCIODEBUG": "1", "LOG_FORMAT": "json"}
    command = "uv run --no-sync manage.py runserver --noreload 8000"
    with copy.serve(command, **debug) as server:
        assert server.get("/hello/you/").status == 200
        slow = r'^\{.*"logger": "asyncio".*"message": "Executing .* took 0\.\d+ seconds'
        server.wait_for(
            lambda: bool(re.search(slow, server.log.read_text(), re.MULTILINE)), 10
        )
