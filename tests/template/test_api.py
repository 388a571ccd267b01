"""Concurrent changes, and the documented example with plain views."""

import re
from pathlib import Path

import pytest

from tests.template.conftest import Bake
from tests.template.prompts import choices
from tests.template.service import Service, Site
from tests.template.test_errors import Case, ask, check_common, check_page

RACE = """\
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from home.api import Change, NewNote, insert, remove, update
from home.models import Note, Revision

barrier = Barrier(8)
note = insert.func(NewNote(title="Milk", text=""))


def race(number):
    barrier.wait()
    return bool(update.func(note.pk, Change(text=f"{number}", version=1)))


def end(number):
    barrier.wait()
    if number == 0:
        return remove.func(note.pk)
    return bool(update.func(note.pk, Change(text=f"{number}", version=2)))


with ThreadPoolExecutor(8) as pool:
    print("changed", sum(pool.map(race, range(8))), Revision.objects.count())
    ended = list(pool.map(end, range(8)))
    print("removed", ended[0], Note.objects.count(), Revision.objects.count())
"""


@pytest.mark.xdist_group("installed")
@pytest.mark.parametrize("database", choices("database"))
def test_only_one_of_concurrent_changes_succeeds(
    ready: Bake, database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    service = ready(api="ninja", database=database, deploy="none", ci="none")
    url = f"sqlite:///{tmp_path}/race.sqlite3"
    if database == "postgresql":
        url = request.getfixturevalue("new_database")()
    service.run("uv run manage.py migrate", DATABASE_URL=url)
    (tmp_path / "race.py").write_text(f"import django\ndjango.setup()\n{RACE}")
    environment = {"DATABASE_URL": url, "DJANGO_SETTINGS_MODULE": "config.settings"}
    environment["PYTHONPATH"] = "."
    output = service.run(f"uv run python '{tmp_path}/race.py'", **environment)
    assert output.splitlines()[-2:] == ["changed 1 2", "removed True 0 0"]


@pytest.mark.xdist_group("admin")
def test_browser_gets_a_page_if_a_view_refuses_the_method(site: Site) -> None:
    case = Case(405, "/admin/login/", "TRACE", site.headers)
    answer = ask(site.server, case)
    assert answer.headers["allow"] == "GET, POST, PUT, HEAD, OPTIONS"
    check_common(answer, case)
    check_page(answer)


TEST = '''\
"""As docs/development.md promises."""

import pytest
from django.test import AsyncClient

from home.models import Note, Revision

JSON = "application/json"
pytestmark = pytest.mark.django_db


@pytest.fixture
async def url(async_client: AsyncClient) -> str:
    note = await async_client.post("/notes/", {"text": "a"}, JSON)
    assert note.status_code == 201
    return f"/notes/{note.json()['id']}/"


async def test_list_is_in_pages(async_client: AsyncClient) -> None:
    await Note.objects.abulk_create(Note(text=f"{n}") for n in range(51))
    page = (await async_client.get("/notes/?page=x")).json()["notes"]
    assert [note["text"] for note in page] == [f"{n}" for n in range(50, 0, -1)]
    page = (await async_client.get("/notes/?page=2")).json()["notes"]
    assert [note["text"] for note in page] == ["0"]


async def test_note_is_changed_and_deleted(async_client: AsyncClient, url: str) -> None:
    note = (await async_client.get(url)).json()
    assert (note["text"], note["version"]) == ("a", 1)
    change = {"text": "b", "version": 1}
    made = [await async_client.patch(url, change, JSON) for turn in (1, 2)]
    assert [response.status_code for response in made] == [200, 409]
    assert made[0].json() == made[1].json() == note | {"text": "b", "version": 2}
    assert await Revision.objects.acount() == 1
    assert (await async_client.delete(url)).status_code == 204
    assert await Revision.objects.acount() == 0
    gone = [await async_client.patch(url, change, JSON)]
    gone += [await async_client.delete(url), await async_client.get(url)]
    assert [response.status_code for response in gone] == [404] * 3


@pytest.mark.parametrize("text", [None, "", "\\0", "x" * 10_001])
async def test_invalid_text_is_refused(
    async_client: AsyncClient, url: str, text: str | None
) -> None:
    change = {"text": text, "version": 1}
    for response in (
        await async_client.post("/notes/", change, JSON),
        await async_client.patch(url, change, JSON),
    ):
        assert (response.status_code, [*response.json()]) == (422, ["text"])


@pytest.mark.parametrize(
    "body", ["", "{", "1", "null", '"text"', '{"text": "\\\\ud800"}', "[" * 100_000]
)
async def test_other_than_json_object_is_refused(
    async_client: AsyncClient, url: str, body: str
) -> None:
    for response in (
        await async_client.post("/notes/", body, JSON),
        await async_client.patch(url, body, JSON),
    ):
        assert response.status_code == 400
    assert await Note.objects.acount() == 1


async def test_other_methods_are_refused(async_client: AsyncClient, url: str) -> None:
    for path, method, allow in (
        ("/notes/", "PUT", "GET, HEAD, POST"),
        ("/notes/", "DELETE", "GET, HEAD, POST"),
        (url, "POST", "GET, HEAD, PATCH, DELETE"),
    ):
        response = await async_client.generic(method, path)
        assert (response.status_code, response["Allow"]) == (405, allow)
'''


@pytest.mark.xdist_group("installed")
def test_documented_plain_views_do_the_same(copied: Service) -> None:
    examples = [code for code in copied.python_examples() if "Note" in code]
    for module, code in zip(("models", "notes", "changes"), examples, strict=True):
        (copied.path / "home" / f"{module}.py").write_text(code)
    code = re.sub(r"(?m)^(from|import) .*|^ *#.*", "", examples[1])
    assert len([line for line in code.splitlines() if line]) <= 20
    (copied.path / "tests" / "test_notes.py").write_text(TEST)
    text = copied.documents()["docs/development.md"]
    paths = re.findall(r'`(path\("notes/.*?\))`', text)
    assert len(paths) == 2
    line = '    path("", views.index),\n'
    added = "".join(f"    {path},\n" for path in paths)
    copied.replace("home/urls.py", line, line + added)
    copied.replace("home/urls.py", "import views", "import changes, notes, views")
    copied.run("uv run --no-sync manage.py makemigrations home")
    copied.run("uv run --no-sync ruff check .")
    copied.run("uv run --no-sync ruff format --check .")
    test = "uv run --no-sync pytest -p no:cacheprovider tests/test_notes.py"
    assert " 14 passed in " in copied.run(test)
