"""A call that blocks the event loop fails its test, and nothing else does.

Each test runs pytest on its own small project, in another process.
"""

from collections.abc import Callable

import pytest

pytest_plugins = ["pytester"]

Run = Callable[..., pytest.RunResult]

# Plugins that take longer to import than a project's tests take.
PYPROJECT = """
[tool.pytest.ini_options]
addopts = "-p no:cookies -p no:ddtrace -p no:hypothesispytest -p no:xdist"
DJANGO_SETTINGS_MODULE = "settings"
asyncio_mode = "auto"
asyncio_default_fixture_loop_scope = "function"
filterwarnings = ["error"]
pythonpath = ["."]
"""

SETTINGS = """
SECRET_KEY = "only for tests"
INSTALLED_APPS = ["django.contrib.staticfiles", "app"]
MIDDLEWARE = ["app.Middleware"]
ROOT_URLCONF = "views"
USE_TZ = True
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": ["templates"],
        "APP_DIRS": True,
    }
]
STATIC_URL = "/static/"
STATIC_ROOT = "static"
STORAGES = {
    "staticfiles": {
        "BACKEND": "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"
    }
}
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"}
]
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"()": "onloop.logging.Formatter", "log_format": "json", "service": "x"}
    },
    "handlers": {
        "stderr": {"class": "onloop.logging.QueueHandler", "formatter": "line"}
    },
    "root": {"handlers": ["stderr"], "level": "INFO"},
}
"""

APP = """
from django.utils.deprecation import MiddlewareMixin


class Middleware(MiddlewareMixin):
    pass
"""

# The view, whose body each test supplies.
VIEWS = """
from django.http import HttpResponse
from django.urls import path


def block():
    with open(__file__) as file:
        return file.read()


async def view(request):
{}
    return HttpResponse()


urlpatterns = [path("", view)]
"""

GET = """
async def test_get(async_client):
    assert (await async_client.get("/")).status_code == 200
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Write a project with one view, and run a test module in it."""
    # It would take precedence over the project's.
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE", raising=False)

    def run(
        test: str = GET, *args: str, view: str = "    pass", may_block: str = ""
    ) -> pytest.RunResult:
        pytester.makepyprojecttoml(f"{PYPROJECT}may_block = [{may_block}]")
        pytester.makepyfile(settings=SETTINGS, views=VIEWS.format(view), test_it=test)
        pytester.makepyfile(**{"app/__init__": APP})
        return pytester.runpytest_subprocess(*args)

    return run


CALLS = """
import socket
import time
from contextlib import suppress

import pytest


def sleep():
    time.sleep(0.01)


def read():
    with open(__file__) as file:
        file.read()


def connect():
    with socket.socket() as client, suppress(OSError):
        client.connect(("127.0.0.1", 1))


def look_up():
    socket.getaddrinfo("localhost", 80)


@pytest.mark.parametrize("call", [sleep, read, connect, look_up])
async def test_call(call):
    call()
"""


def test_message_names_the_call_its_line_and_how_to_allow_it(run: Run) -> None:
    result = run(CALLS)
    result.assert_outcomes(failed=4)
    for call, line, function, source in [
        ("time.sleep", 9, "sleep", "time.sleep(0.01)"),
        ("io.TextIOWrapper.read", 14, "read", "file.read()"),
        ("socket.socket.connect", 19, "connect", 'client.connect(("127.0.0.1", 1))'),
        (
            *("socket.getaddrinfo", 23, "look_up"),
            'socket.getaddrinfo("localhost", 80)',
        ),
    ]:
        message = (
            f"E               onloop._blocking.BlockingCall: {call} blocks the event loop, and "
            f"so every request, at test_it.py:{line} in {function}(): `{source}`. "
            "Await an asynchronous function instead, or sync_to_async() of "
            f'asgiref.sync. To allow it, add "test_it.py:{function}" to may_block in '
            "pyproject.toml."
        )
        assert message in result.outlines


def test_threads_and_synchronous_code_may_block(run: Run) -> None:
    test = """
        import asyncio
        import time

        from asgiref.sync import sync_to_async


        async def test_threads():
            await sync_to_async(time.sleep)(0.01)
            await asyncio.to_thread(time.sleep, 0.01)


        def test_synchronous():
            time.sleep(0.01)
    """
    run(test).assert_outcomes(passed=2)


def test_blocking_call_that_django_answered_with_500_fails_the_test(run: Run) -> None:
    test = """
        import pytest


        async def test_raised(async_client):
            await async_client.get("/")


        @pytest.mark.parametrize("expected", [200, 500])
        async def test_answered(async_client, expected):
            async_client.raise_request_exception = False
            assert (await async_client.get("/")).status_code == expected


        def test_next():
            pass
    """
    result = run(test, view="    block()")
    result.assert_outcomes(failed=3, passed=1)
    found = "E *BlockingCall: io.TextIOWrapper.read * at views.py:7 in block(): *"
    result.stdout.fnmatch_lines([found] * 3)


def test_blocking_fixture_fails_its_test(run: Run) -> None:
    test = """
        import time
        from contextlib import suppress

        import pytest


        @pytest.fixture
        async def before():
            with suppress(Exception):
                time.sleep(0.01)


        @pytest.fixture
        async def after():
            yield
            with suppress(Exception):
                time.sleep(0.01)


        def test_before(before):
            pass


        def test_after(after):
            pass
    """
    run(test).assert_outcomes(errors=2, passed=1)


def test_may_block_allows_a_function_of_a_file(run: Run) -> None:
    test = """
        import time


        def allowed():
            time.sleep(0.01)


        def not_allowed():
            time.sleep(0.01)


        async def test_allowed():
            allowed()


        async def test_not_allowed():
            not_allowed()
    """
    may_block = '"test_it.py:allowed", "it.py:not_allowed", "other.py:not_allowed"'
    run(test, may_block=may_block).assert_outcomes(passed=1, failed=1)


@pytest.mark.parametrize("entry", ["views.py", "views:block", "a.py:b()"])
def test_may_block_refuses_what_names_no_function(run: Run, entry: str) -> None:
    result = run(may_block=f'"{entry}"')
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.errlines == [
        f'ERROR: may_block: "{entry}" is not of the form "path.py:function".',
        "",
    ]


def test_message_names_the_line_that_calls_a_library(
    run: Run, pytester: pytest.Pytester
) -> None:
    source = (
        "import time\n"
        "def block():\n    time.sleep(0.01)\n"
        "async def block_later():\n    block()\n"
    )
    for path in ("vendor/a.py", ".venv/lib/site-packages/b.py"):
        (pytester.path / path).parent.mkdir(parents=True)
        (pytester.path / path).write_text(source)
    test = """
        import asyncio
        import sys

        sys.path += ["vendor", ".venv/lib/site-packages"]
        import a
        import b


        async def test_vendored():
            a.block()


        async def test_installed():
            b.block()


        async def test_task_of_the_library():
            await asyncio.create_task(b.block_later())
    """
    result = run(test)
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(
        [
            "E *BlockingCall: * at test_it.py:10 in test_vendored(): `a.block()`. *",
            "E *BlockingCall: * at test_it.py:14 in test_installed(): `b.block()`. *",
            "E *BlockingCall: * at b.py:3 in block(): `time.sleep(0.01)`. *",
        ]
    )


def test_what_happens_once_in_a_process_may_block(
    run: Run, pytester: pytest.Pytester
) -> None:
    # Each test runs in a new process, in which it is the first to do so.
    test = """
        import mimetypes
        from zoneinfo import ZoneInfo

        import app
        import pytest
        from django import forms
        from django.contrib.auth.password_validation import validate_password
        from django.template.loader import render_to_string
        from django.templatetags.static import static
        from django.test import AsyncRequestFactory
        from django.utils import translation


        class Middleware(app.Middleware):
            def __init__(self, get_response):
                super().__init__(get_response)
                with open(__file__) as file:
                    file.read()


        class Form(forms.Form):
            name = forms.CharField()


        @pytest.fixture
        def file():
            with open(__file__, "rb") as file:
                yield file


        async def test_chain_of_middlewares(settings, async_client):
            settings.MIDDLEWARE = ["test_it.Middleware"]
            await async_client.get("/")


        async def test_type_of_a_file():
            assert mimetypes.guess_type("style.css")[0] == "text/css"


        async def test_upload(async_client, file):
            await async_client.post("/", {"file": file})


        async def test_template():
            render_to_string("page.html")


        async def test_template_of_a_folder():
            render_to_string("folder.html")


        async def test_form():
            assert "name" in Form().as_p()


        async def test_time_zone():
            ZoneInfo("Europe/Berlin")


        async def test_language_of_a_request():
            request = AsyncRequestFactory().get("/", headers={"accept-language": "de"})
            assert translation.get_language_from_request(request) == "de"


        async def test_language():
            with translation.override("de"):
                assert translation.gettext("Yes") == "Ja"


        async def test_manifest_of_static_files():
            assert static("style.css") == "/static/style.1.css"


        async def test_password_validators():
            validate_password("a long and uncommon one")


        async def test_import():
            import imported
    """
    for path, text in {
        "templates/folder.html": "",
        "app/templates/page.html": "{% include 'part.html' %}",
        "app/templates/part.html": "",
        "static/staticfiles.json": (
            '{"version": "1.1", "paths": {"style.css": "style.1.css"}}'
        ),
        "imported.py": "with open(__file__) as file:\n    file.read()\n",
    }.items():
        (pytester.path / path).parent.mkdir(parents=True, exist_ok=True)
        (pytester.path / path).write_text(text)
    run(test).assert_outcomes(passed=12)


@pytest.mark.parametrize("log_file", [[], ["--log-file=log"]], ids=str)
def test_logged_exception_is_no_finding(run: Run, log_file: list[str]) -> None:
    test = """
        async def test_get(async_client):
            await async_client.get("/")


        async def test_with_caplog(async_client, caplog, capsys):
            await async_client.get("/")
            assert len(caplog.records) == 1
    """
    view = """
    import logging
    try:
        1 / 0
    except ZeroDivisionError:
        logging.getLogger("views").exception("No number", stack_info=True)
"""
    run(test, *log_file, view=view).assert_outcomes(passed=2)


def test_everything_is_restored_at_the_end(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makeconftest("""
        import _thread
        import io
        import socket
        import time

        import blockbuster.blockbuster
        from django.db import connections

        def state():
            return [
                time.sleep,
                io.TextIOWrapper.read,
                _thread.LockType.acquire,
                socket.getaddrinfo,
                socket.socket.connect,
                blockbuster.blockbuster.BlockingError,
            ]

        before = state()

        def pytest_sessionstart():
            assert state() == before

        def pytest_unconfigure():
            assert state() == before
            print("All as before")
    """)
    result = run(f"{GET}\n\ndef test_failing():\n    assert False")
    result.assert_outcomes(passed=1, failed=1)
    assert result.outlines[-1] == "All as before"


def test_without_blockbuster_the_report_says_so(
    run: Run, pytester: pytest.Pytester
) -> None:
    pytester.makeconftest("import sys\nsys.modules['blockbuster'] = None")
    result = run(view="    block()")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        "onloop: blocking calls are not detected: blockbuster is not installed"
    )


def test_project_without_django_is_unaffected(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE", raising=False)
    # Otherwise pytest would use the options of a parent folder.
    pytester.makeini("[pytest]\naddopts = -p no:ddtrace -p no:hypothesispytest")
    pytester.makepyfile("""
        import asyncio
        import sys
        import time


        async def block():
            time.sleep(0.01)


        def test_blocking():
            asyncio.run(block())
            assert "onloop.pytest_plugin" in sys.modules
            assert sys.modules.keys().isdisjoint(["django", "asgiref", "blockbuster"])
    """)
    result = pytester.runpytest_subprocess("-p", "no:django", "-p", "no:asyncio")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("onloop*")


def test_thread_hops_are_counted(run: Run) -> None:
    test = """
        from django.http import HttpResponse
        from django.urls import path


        def blocking(request):
            return HttpResponse()


        async def hopless(request):
            return HttpResponse()


        urlpatterns = [path("", hopless), path("blocking", blocking)]


        async def test_hops(settings, thread_hops):
            settings.ROOT_URLCONF = __name__
            settings.MIDDLEWARE = []
            assert await thread_hops() == []
            [hop] = await thread_hops("/blocking")
            assert hop.middleware is None
            assert hop.what == "test_it.blocking"
    """
    run(test).assert_outcomes(passed=1)
