"""Database tests leave nothing behind, whichever threads they use.

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
import os

SECRET_KEY = "only for tests"
INSTALLED_APPS = ["rows"]
MIDDLEWARE = []
ROOT_URLCONF = "urls"
USE_TZ = True
ASGI_APPLICATION = "asgi.application"

DATABASES = {}
for alias in ("default", "other"):
    match os.environ["DATABASE"]:
        case "file":
            DATABASES[alias] = {
                "ENGINE": "django.db.backends.sqlite3",
                "TEST": {"NAME": f"{alias}.sqlite3"},
            }
        case "memory":
            DATABASES[alias] = {"ENGINE": "django.db.backends.sqlite3"}
        case host:
            DATABASES[alias] = {
                "ENGINE": "django.db.backends.postgresql",
                "HOST": host,
                "USER": "postgres",
                "NAME": alias,
                "CONN_MAX_AGE": None,
            }
"""

MODELS = """
from django.db import models


class Row(models.Model):
    name = models.CharField(max_length=20, unique=True)
"""

URLS = """
from django.db import transaction
from django.http import HttpResponse
from django.urls import path
from rows.models import Row


@transaction.atomic
def create(request, name):
    Row.objects.create(name=name)
    return HttpResponse()


async def acreate(request, name):
    await Row.objects.acreate(name=name)
    return HttpResponse()


async def names(request):
    return HttpResponse(" ".join([row.name async for row in Row.objects.all()]))


urlpatterns = [
    path("create/<name>", create),
    path("acreate/<name>", acreate),
    path("names", names),
]
"""

# The environment sets the order of the tests, none of which may find a row.
CONFTEST = """
import os
import random

import pytest
from rows.models import Row


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    match os.environ["ORDER"]:
        case "reversed":
            items.reverse()
        case "random":
            seed = random.randrange(1000)
            print("The seed is", seed)
            random.Random(seed).shuffle(items)


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup, django_db_blocker):
    yield
    with django_db_blocker.unblock():
        assert not Row.objects.exists()


@pytest.fixture(autouse=True)
def empty(db, request):
    for alias in getattr(request, "param", ["default"]):
        assert not Row.objects.using(alias).exists()


@pytest.fixture
def row():
    return Row.objects.create(name="row")


@pytest.fixture
async def arow():
    yield await Row.objects.acreate(name="arow")
    await Row.objects.acreate(name="after arow")
"""

TESTS = """
import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from asgiref.testing import ApplicationCommunicator
from onloop.asgi import get_asgi_application
from rows.models import Row


def names():
    return [row.name for row in Row.objects.order_by("name")]


anames = sync_to_async(names)


async def request(path):
    scope = {"type": "http", "method": "GET", "path": path, "query_string": b""}
    scope |= {"headers": [(b"host", b"testserver")], "http_version": "1.1"}
    communicator = ApplicationCommunicator(get_asgi_application(), scope)
    await communicator.send_input({"type": "http.request"})
    assert (await communicator.receive_output())["status"] == 200
    body = (await communicator.receive_output())["body"].decode()
    await communicator.wait()
    return body


def test_sync():
    Row.objects.create(name="sync")
    assert names() == ["sync"]


async def test_async():
    await Row.objects.acreate(name="async")
    assert await anames() == ["async"]


def test_sync_with_a_sync_fixture(row):
    assert names() == ["row"]


async def test_async_with_a_sync_fixture(row):
    await Row.objects.acreate(name="async")
    assert await anames() == ["async", "row"]


def test_sync_with_an_async_fixture(arow):
    assert names() == ["arow"]


async def test_async_with_both_fixtures(row, arow):
    await row.adelete()
    assert await anames() == ["arow"]


def test_sync_client(client, row):
    client.get("/create/sync")
    client.get("/acreate/async")
    assert names() == ["async", "row", "sync"]


async def test_async_client(async_client, row):
    await async_client.get("/create/sync")
    await async_client.get("/acreate/async")
    assert await anames() == ["async", "row", "sync"]


async def test_request_to_the_handler(row):
    await asyncio.gather(*(request(f"/acreate/async{n}") for n in range(4)))
    await asyncio.gather(*(request(f"/create/sync{n}") for n in range(4)))
    assert len((await request("/names")).split()) == await Row.objects.acount() == 9


async def test_calls_at_once(row):
    await asyncio.gather(*(Row.objects.acreate(name=f"{n}") for n in range(8)))
    assert await Row.objects.acount() == 9


async def test_other_threads(row):
    assert await asyncio.to_thread(names) == ["row"]
    assert await sync_to_async(names, thread_sensitive=False)() == ["row"]
    await asyncio.to_thread(Row.objects.create, name="other")
    assert await anames() == ["other", "row"]


def test_sync_with_threads(arow):
    with ThreadPoolExecutor() as executor:
        assert executor.submit(names).result() == ["arow"]
    async_to_sync(anames)()
    assert names() == ["arow"]


@pytest.mark.django_db(databases=["default", "other"])
@pytest.mark.parametrize("empty", [["other"], ["default", "other"]], indirect=True)
async def test_two_databases(row):
    await Row.objects.using("other").acreate(name="other")
    assert await Row.objects.using("other").acount() == 1
    assert await anames() == ["row"]
"""


@pytest.fixture
def run(
    request: pytest.FixtureRequest,
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Write the project, and run a test module in it."""
    database = request.param
    if database == "postgresql":
        database = request.getfixturevalue("postgresql").pgdata
    monkeypatch.setenv("DATABASE", str(database))
    # It would take precedence over the project's.
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE", raising=False)
    pytester.makepyprojecttoml(PYPROJECT)
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(settings=SETTINGS, urls=URLS)
    pytester.makepyfile(**{"rows/__init__": "", "rows/models": MODELS})

    def run(tests: str, *args: str, order: str = "written") -> pytest.RunResult:
        monkeypatch.setenv("ORDER", order)
        pytester.makepyfile(test_rows=tests)
        # A locked database would wait forever.
        return pytester.runpytest_subprocess(*args, timeout=100)

    return run


def on(*databases: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("run", databases, indirect=True)


@on("file", "memory", "postgresql")
@pytest.mark.parametrize("order", ["written", "reversed", "random"])
def test_nothing_is_left_behind(run: Run, order: str) -> None:
    run(TESTS, order=order).assert_outcomes(passed=14)


@on("file")
def test_strict_mode_of_pytest_asyncio_is_isolated_too(run: Run) -> None:
    tests = """
        import pytest
        import pytest_asyncio
        from rows.models import Row


        @pytest_asyncio.fixture
        async def arow():
            return await Row.objects.acreate(name="arow")


        @pytest.mark.asyncio
        @pytest.mark.parametrize("number", range(2))
        async def test_async(number, row, arow):
            assert await Row.objects.acount() == 2
    """
    run(tests, "-o", "asyncio_mode=strict").assert_outcomes(passed=2)


# When this fails, pytest-django has closed its issue 580.
@on("memory")
def test_without_the_plugin_rows_stay(run: Run) -> None:
    tests = """
        import pytest
        from rows.models import Row


        @pytest.fixture
        def empty(db):
            pass


        async def test_async():
            await Row.objects.acreate(name="async")


        def test_sync():
            assert not Row.objects.exists()
    """
    run(tests).assert_outcomes(passed=2)
    run(tests, "-p", "no:onloop").assert_outcomes(passed=1, failed=1, errors=1)


@on("file", "postgresql")
def test_failing_test_leaves_nothing_behind(run: Run) -> None:
    tests = """
        import asyncio

        import pytest
        from rows.models import Row


        @pytest.mark.parametrize("number", range(2))
        async def test_failing(number, row):
            async with asyncio.TaskGroup() as group:
                for n in range(8):
                    group.create_task(Row.objects.acreate(name=f"{n % 5}"))


        async def test_passing(row):
            assert await Row.objects.acount() == 1
    """
    run(tests).assert_outcomes(failed=2, passed=1)


@on("file", "postgresql")
def test_atomic_that_a_cancelled_task_left_open_is_rolled_back(run: Run) -> None:
    tests = """
        import asyncio
        import threading
        from contextlib import suppress

        import pytest
        from asgiref.sync import sync_to_async
        from django.db import transaction
        from rows.models import Row


        async def leave_atomic_open(entered):
            await sync_to_async(transaction.atomic().__enter__)()
            await sync_to_async(transaction.atomic().__enter__)()
            await Row.objects.acreate(name="inside")
            entered.set()
            await asyncio.Event().wait()


        @pytest.mark.django_db(transaction=True)
        def test_durable():
            with transaction.atomic(durable=True):
                pass


        @pytest.mark.parametrize(
            "kind",
            [
                pytest.param("plain", marks=pytest.mark.django_db()),
                pytest.param("real", marks=pytest.mark.django_db(transaction=True)),
            ],
        )
        @pytest.mark.parametrize("number", range(2))
        async def test_cancelled(kind, number):
            entered = asyncio.Event()
            task = asyncio.create_task(leave_atomic_open(entered))
            await entered.wait()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            assert await Row.objects.aexists()
    """
    result = run(tests, "--durations=1", "--durations-min=4")
    result.assert_outcomes(passed=5)
    # The thread that left it open is not waited for.
    result.stdout.no_fnmatch_line("*s teardown *")


@on("file", "postgresql")
def test_atomic_of_one_thread_waits_for_that_of_another(run: Run) -> None:
    tests = """
        import asyncio
        import threading
        from contextlib import suppress

        from django.db import transaction
        from rows.models import Row


        async def test_threads():
            inside = threading.Event()
            created = threading.Event()

            def roll_back():
                with suppress(ZeroDivisionError), transaction.atomic():
                    Row.objects.create(name="rolled back")
                    inside.set()
                    # It is not done: it waits for the end of this block.
                    assert not created.wait(0.2)
                    1 / 0

            def create():
                inside.wait()
                Row.objects.create(name="plain")
                created.set()

            @transaction.atomic(durable=True)
            def create_in_block():
                Row.objects.create(name="in a block")

            await asyncio.gather(
                asyncio.to_thread(roll_back),
                asyncio.to_thread(create),
                asyncio.to_thread(inside.wait),
                asyncio.to_thread(create_in_block),
            )
            names = {row.name async for row in Row.objects.all()}
            assert names == {"plain", "in a block"}

    """
    run(tests).assert_outcomes(passed=1)


@on("file")
def test_cursor_of_a_thread_leaves_nothing_in_progress(run: Run) -> None:
    # SQLite opens no savepoint during a statement that writes.
    tests = """
        import asyncio
        import threading

        from django.db import connection, transaction
        from rows.models import Row


        async def test_cursor():
            inserted = threading.Event()
            created = threading.Event()

            def insert():
                with connection.cursor() as cursor:
                    cursor.execute(
                        "INSERT INTO rows_row (name)"
                        " VALUES ('one'), ('two'), ('three'), ('four')"
                        " RETURNING name"
                    )
                    inserted.set()
                    assert created.wait(10)
                    assert cursor.fetchone() == ("one",)
                    assert cursor.fetchmany(2) == [("two",), ("three",)]
                    assert list(cursor) == [("four",)]
                    assert cursor.fetchall() == []
                    assert cursor.description[0][0] == "name"
                    assert cursor.execute("SELECT 1").fetchall() == [(1,)]

            def create():
                assert inserted.wait(10)
                with transaction.atomic():
                    Row.objects.create(name="five")
                created.set()

            await asyncio.gather(asyncio.to_thread(insert), asyncio.to_thread(create))
            assert await Row.objects.acount() == 5
    """
    run(tests).assert_outcomes(passed=1)


@on("file")
def test_error_of_a_later_row_is_djangos(run: Run) -> None:
    tests = """
        import pytest
        from asgiref.sync import sync_to_async
        from django.db import OperationalError, connection


        def query():
            with connection.cursor() as cursor:
                cursor.execute("SELECT json('{}') UNION ALL SELECT json('wrong')")
                return cursor.fetchall()


        async def test_error():
            with pytest.raises(OperationalError):
                await sync_to_async(query)()
    """
    run(tests).assert_outcomes(passed=1)


@on("file")
def test_atomic_that_waits_for_another_thread_does_not_hang(run: Run) -> None:
    tests = """
        import asyncio
        import time

        from django.db import transaction
        from onloop import _isolation
        from rows.models import Row

        _isolation.TURN_TIMEOUT = 1


        async def test_threads():
            def count_in_thread(loop):
                with transaction.atomic():
                    for _ in range(10):
                        count = asyncio.to_thread(Row.objects.count)
                        future = asyncio.run_coroutine_threadsafe(count, loop)
                        assert future.result() == 0

            before = time.monotonic()
            await asyncio.to_thread(count_in_thread, asyncio.get_running_loop())
            # It has timed out once.
            assert 1 <= time.monotonic() - before < 10
    """
    run(tests).assert_outcomes(passed=1)


@on("file", "postgresql")
def test_call_that_outlives_its_test_ends_before_the_rollback(run: Run) -> None:
    tests = """
        import asyncio
        import threading
        import time

        import pytest
        from asgiref.sync import sync_to_async
        from django.db import transaction
        from rows.models import Row

        pytestmark = pytest.mark.asyncio(loop_scope="session")
        tasks = []


        @pytest.mark.parametrize("number", range(2))
        @pytest.mark.parametrize("in_block", [False, True])
        async def test_outlived(number, in_block):
            started = threading.Event()

            def create():
                Row.objects.create(name="one")
                started.set()
                time.sleep(0.2)
                Row.objects.create(name="two")

            if in_block:
                call = asyncio.to_thread(transaction.atomic(create))
            else:
                call = sync_to_async(create)()
            tasks.append(asyncio.create_task(call))
            while not started.is_set():
                await asyncio.sleep(0.01)


        async def test_last():
            await asyncio.gather(*tasks)
    """
    run(tests).assert_outcomes(passed=5)


@on("file", "postgresql")
def test_transactional_test_closes_what_its_threads_opened(run: Run) -> None:
    tests = """
        import asyncio

        import pytest
        from asgiref.sync import sync_to_async
        from django.db import connection
        from rows.models import Row

        opened = []


        def create(name):
            Row.objects.create(name=name)
            opened.append(connection.connection)


        @pytest.mark.django_db(transaction=True)
        @pytest.mark.parametrize("number", range(2))
        async def test_threads(number):
            for each in opened:
                with pytest.raises(Exception, match="closed"):
                    each.cursor()
            await sync_to_async(create)("one")
            await asyncio.to_thread(create, "two")
            assert await Row.objects.acount() == 2
            assert len(set(opened)) == 2 * (number + 1)
    """
    run(tests).assert_outcomes(passed=2)


@on("postgresql")
def test_connections_of_fixtures_of_the_session_are_closed(run: Run) -> None:
    tests = """
        import pytest
        from rows.models import Row


        @pytest.fixture(scope="session")
        async def rows_of_migrations(django_db_setup, django_db_blocker):
            with django_db_blocker.unblock():
                return await Row.objects.acount()


        def test_rows(rows_of_migrations):
            assert rows_of_migrations == 0
    """
    # PostgreSQL does not drop a database that is in use, and pytest-django warns.
    run(tests, "-o", "asyncio_default_fixture_loop_scope=session").assert_outcomes(
        passed=1
    )


@on("file")
def test_thread_that_closes_its_connection_keeps_the_transaction(run: Run) -> None:
    tests = """
        import asyncio

        import pytest
        from asgiref.sync import sync_to_async
        from django.db import connections
        from rows.models import Row


        @pytest.mark.parametrize("number", range(2))
        async def test_closing(number, row):
            await sync_to_async(connections.close_all)()
            await asyncio.to_thread(connections.close_all)
            assert await Row.objects.acount() == 1
    """
    run(tests).assert_outcomes(passed=2)


@on("file")
def test_database_that_is_not_declared_is_refused_in_every_thread(run: Run) -> None:
    tests = """
        import asyncio

        import pytest
        from rows.models import Row


        async def test_other():
            other = Row.objects.using("other")
            for count in (other.acount(), asyncio.to_thread(other.count)):
                with pytest.raises(AssertionError, match="'other' are not allowed"):
                    await count
    """
    run(tests).assert_outcomes(passed=1)


@on("file")
def test_classes_of_django_work_as_before(run: Run) -> None:
    tests = """
        import threading

        import pytest
        from django.db import connection
        from django.test import TestCase, TransactionTestCase
        from rows.models import Row


        @pytest.fixture
        def empty():
            pass


        async def test_function(db):
            assert not await Row.objects.aexists()


        class TestInTransaction(TestCase):
            @classmethod
            def setUpTestData(cls):
                Row.objects.create(name="data")

            async def test_async(self):
                await Row.objects.acreate(name="async")
                self.assertEqual(await Row.objects.acount(), 2)

            def test_sync(self):
                self.assertEqual(Row.objects.count(), 1)


        @pytest.mark.django_db
        class TestMarked(TestInTransaction):
            def test_connection_of_another_thread_is_its_own(self):
                seen = []
                look = lambda: seen.append(connection.in_atomic_block)
                thread = threading.Thread(target=look)
                thread.start()
                thread.join()
                self.assertEqual(seen, [False])
                self.assertFalse(connection.allow_thread_sharing)


        class TestWithout(TransactionTestCase):
            async def test_async(self):
                await Row.objects.acreate(name="async")
                self.assertEqual(await Row.objects.acount(), 1)
    """
    run(tests).assert_outcomes(passed=7)
