"""Mistakes that slow a new service down or break it are reported with a fix."""

import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import NamedTuple

import pytest

from tests.template.service import Service, finish

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
    # The parts of the report, in this order.
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
        ["'home.middleware.tutorial' is synchronous", "a thread", "HINT:", "SYNC_MIDD"],
        "home.middleware.tutorial",
        FUNCTION,
    ),
    "blocking function, flagged async": Mistake(
        TEST,
        ["time.sleep blocks the event loop", "home/middleware.py:", "may_block"],
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
        ["'whitenoise.middleware.WhiteNoiseMiddleware' is synchronous", "a thread"],
        "whitenoise.middleware.WhiteNoiseMiddleware",
    ),
}


def add(service: Service, middleware: str) -> None:
    entry = '    "django.middleware.common.CommonMiddleware",\n'
    service.replace("config/settings.py", entry, f'    "{middleware}",\n{entry}')


def begin_hello_with(service: Service, statement: str) -> None:
    line = '    return JsonResponse({"hello": name})\n'
    service.replace("home/views.py", line, f"    {statement}\n{line}")


@pytest.mark.xdist_group("installed")
@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_reported_with_its_fix(copied: Service, name: str) -> None:
    mistake = MISTAKES[name]
    if mistake.source:
        (copied.path / "home" / "middleware.py").write_text(mistake.source)
    if mistake.middleware:
        add(copied, mistake.middleware)
    if mistake.view:
        begin_hello_with(copied, mistake.view)
    done = finish(mistake.command.split(), copied.path, copied.environment, timeout=120)
    said = ".*".join(re.escape(part) for part in mistake.says)
    assert re.search(said, done.stdout, re.DOTALL), done.stdout
    warned = "WARNINGS:" in done.stdout
    assert warned if done.returncode == 0 else done.returncode == 1


@pytest.mark.xdist_group("installed")
@pytest.mark.parametrize(
    "command",
    [
        "manage.py check",
        "uvicorn config.asgi:application",
        "uvicorn config.asgi:application --log-config config/logging.json",
        "pytest tests/test_home.py",
    ],
)
def test_faulty_dotenv_is_one_sentence(copied: Service, command: str) -> None:
    (copied.path / ".env").write_text("SECRET_KEY='hunter2\n")
    run = f"uv run --no-sync {command}".split()
    done = finish(run, copied.path, copied.environment)
    assert done.returncode == 1
    assert done.stdout == ".env must have NAME=value lines in UTF-8, no BOM.\n"


@pytest.mark.xdist_group("installed")
def test_name_in_dotenv_that_only_compose_reads_is_refused_without_it(
    copied: Service,
) -> None:
    with (copied.path / ".env").open("a", encoding="utf-8") as dotenv:
        dotenv.write("FORWARDED_ALLOW_IPS=10.0.0.0/8\n")
    done = finish(CHECK.split(), copied.path, copied.environment)
    refused = "FORWARDED_ALLOW_IPS in .env is refused: no setting has this name.\n"
    assert (done.returncode, done.stdout) == (1, refused)
    (copied.path / "compose.yaml").touch()
    assert "no issues" in copied.run(CHECK)


class Weather(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"sunny")


@pytest.fixture
def weather() -> Iterator[str]:
    """The address of the server that the documented example requests."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Weather) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.mark.xdist_group("installed")
def test_documented_middlewares_stay_on_the_loop(copied: Service, weather: str) -> None:
    middlewares = [c for c in copied.python_examples() if "get_response" in c]
    examples = "\n".join(middlewares)
    assert "https://weather.example/now" in examples
    examples = examples.replace("https://weather.example/now", weather)
    (copied.path / "home" / "middleware.py").write_text(examples)
    add(copied, "home.middleware.GreetingMiddleware")
    add(copied, "home.middleware.weather")
    run = "uv run --no-sync --with httpx manage.py"
    table = copied.run(f"{run} middleware --fail-on-hops")
    assert "GET / -> 200" in table
    assert re.search(r"serving\.middleware\.deadline +not used", table)
    for name in ("GreetingMiddleware", "weather"):
        assert re.search(rf"home\.middleware\.{name} +on the loop", table)
    assert "no issues" in copied.run(f"{run} check --fail-level WARNING")


@pytest.mark.xdist_group("installed")
def test_slow_callback_is_logged_like_everything_else(copied: Service) -> None:
    begin_hello_with(copied, "__import__('time').sleep(0.2)")
    debug = {"PYTHONASYNCIODEBUG": "1", "LOG_FORMAT": "json"}
    command = "uv run --no-sync manage.py runserver --noreload 8000"
    with copied.serve(command, **debug) as server:
        assert server.get("/hello/you/").status == 200
        # It names a task of uvicorn, and the line above it names the route.
        timing = r'"logger": "serving.timing".* "route": "hello/<str:name>/".*\n'
        slow = (
            r'\{.*"logger": "asyncio".*"message": "Executing .* took \d+\.\d+ seconds'
        )
        server.wait_for(
            lambda: bool(re.search(timing + slow, server.log.read_text())), 10
        )
