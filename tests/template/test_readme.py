"""What the README, CONTRIBUTING.md and the benchmarks' README say is so."""

import ast
import os
import pty
import re
import sys
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path

import pytest

from benchmarks import chart
from tests.template.conftest import Bake
from tests.template.prompts import CONTEXT, DEFAULTS
from tests.template.service import ONLOOP, TEMPLATE, TREE, Service
from tests.template.test_vendor import lines, sources

README = (TEMPLATE / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (TEMPLATE / "CONTRIBUTING.md").read_text(encoding="utf-8")
DOCUMENTS = [TEMPLATE / "README.md", TEMPLATE / "CONTRIBUTING.md"]
DOCUMENTS.append(TEMPLATE / "benchmarks" / "README.md")
EXCERPT, TRANSCRIPT, ASKED, GENERATED, *_ = re.findall(
    r"^```\w+\n(.*?)^```", README, re.MULTILINE | re.DOTALL
)  # Inline code is wrapped where a block would have to be scrolled.
[LOGGED] = re.findall(r"^> `(.*)`$", README, re.MULTILINE)
COLOR = re.compile(rb"\x1b\[[\d;]*m")


def table(heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without its own."""
    _, _, section = README.partition(f"\n## {heading}\n")
    rows = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert rows, heading
    found = rows[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in found]


def prompted(folder: Path, environment: dict[str, str]) -> str:
    """What cookiecutter shows on a terminal when each answer is the default."""
    process, terminal = pty.fork()
    if not process:
        os.chdir(folder)
        command = [sys.executable, "-m", "cookiecutter", str(TEMPLATE)]
        os.execve(command[0], command, environment)
    shown = b""
    # Linux says that the other side is closed by an error, others by an empty read.
    with suppress(OSError):
        while part := os.read(terminal, 4096):
            shown = COLOR.sub(b"", shown + part)
            if shown.endswith(b"): "):
                os.write(terminal, b"\n")
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    text = shown.decode().replace("\r\n", "\n").replace(str(folder), "/home/you")
    assert not status, text
    # The folder of the tests has a blank in its name, and so is quoted.
    text = re.sub("'(/home/you/.*)'", r"\1", text)
    return re.sub(" +$", "", text, flags=re.MULTILINE)


def test_transcript_is_what_the_terminal_shows(
    tmp_path: Path, clean_environment: dict[str, str]
) -> None:
    # So wide that no prompt is broken into two lines.
    terminal = {"TERM": "xterm", "COLUMNS": "120"}
    shown = prompted(tmp_path, clean_environment | terminal)
    assert shown.rstrip("\n") + "\n" == TRANSCRIPT
    command, _, excerpt = EXCERPT.partition("\n")
    assert command == "$ cookiecutter gh:org/cookiecutter-async-django"
    assert_shortened(excerpt, shown)
    assert README.count(f"[1/{len(DEFAULTS)}]") == 2


def assert_shortened(excerpt: str, whole: str) -> None:
    """Dots stand for lines that are left out."""
    for part in re.split(r"^ *\.\.\.\n", excerpt, flags=re.MULTILINE):
        _, found, whole = whole.partition(part)
        assert found, f"not there, or not in this order: {part}"


def masked(text: str) -> str:
    """Without what differs from request to request."""
    for pattern, name in (
        (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME"),
        (r"\w{3}, \d\d \w{3} \d{4} [\d:]+ GMT", "DATE"),
        (r"\b[0-9a-f]{32}\b", "ID"),
        (r"\b\d+\.\d+\b(?!\.)", "NUMBER"),
    ):
        text = re.sub(pattern, name, text)
    return text


def test_service_answers_and_logs_as_shown(installed: Service) -> None:
    command, _, answer = ASKED.partition("\n")
    path = re.fullmatch(r"\$ curl -i http://127\.0\.0\.1:8000(/\S+)", command)
    assert path
    with installed.serve(
        "uv run --no-sync manage.py runserver 8000 --noreload"
    ) as server:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("GET", path[1])
        response = connection.getresponse()
        headers = "".join(f"{name}: {value}\n" for name, value in response.getheaders())
        body = response.read().decode()
        connection.close()
    status = f"HTTP/1.1 {response.status} {response.reason}"
    assert_shortened(masked(answer), masked(f"{status}\n{headers}\n{body}\n"))
    [line] = [
        line for line in server.log.read_text().splitlines() if "serving.timing" in line
    ]
    assert masked(LOGGED) == masked(line.replace("\t", " "))
    # One request, in both.
    [request_id] = re.findall(r"request_id=(\w+)", LOGGED)
    assert f"x-request-id: {request_id}\n" in answer


def test_tree_is_what_is_generated(bake: Bake) -> None:
    generated = bake().path
    shown: dict[str, list[str]] = {}
    folder, *entries = GENERATED.splitlines()
    assert folder == f"{DEFAULTS['project_slug']}/"
    for entry in entries:
        match = re.match(r"(│?) *[├└]── (\S+)", entry)
        assert match, entry
        inner, name = match.groups()
        if inner:
            top = list(shown)[-1]
            shown[top].append(name)
            assert (generated / top / name).exists(), f"{top}{name}"
        else:
            shown[name] = []
            assert (generated / name).is_dir() == name.endswith("/")
    made = {".venv", "uv.lock", ".pytest_cache", ".mypy_cache", ".ruff_cache"}
    names = {path.name for path in generated.iterdir()} - made
    assert {name.partition("/")[0] for name in shown} == names


def test_questions_are_those_of_cookiecutter() -> None:
    questions = table("The thirteen questions")
    assert [f"`{prompt}`" for prompt in DEFAULTS] == [row[0] for row in questions]
    for prompt, default, choices in questions:
        value = CONTEXT[prompt.strip("`")]
        if isinstance(value, bool):
            assert (default, choices.partition(":")[0]) == ("yes", "yes, no")
        elif isinstance(value, list):
            assert default == f"`{value[0]}`"
            # What is in parentheses or behind a colon explains.
            assert re.findall(r"(?:^|, )`(.+?)`", choices) == value
        elif prompt != "`project_slug`":
            assert default == f"`{value}`"


def test_each_row_of_the_comparison_names_its_sources() -> None:
    [comment] = re.findall(r"<!--\nWhere each.*?-->", README, re.DOTALL)
    for row, *cells in table("Beside other starting points"):
        assert len(cells) == 5 and all(cells)
        assert f"\n{row}: " in comment, row


def test_what_the_readme_says_is_not_there_is_not() -> None:
    needed = (TREE / "pyproject.toml").read_text(encoding="utf-8")
    for name in ("allauth", "celery", "channels", "sentry", "storages", "anymail"):
        assert name not in needed


def prose(text: str) -> str:
    """Without code blocks, tables, comments, pictures, and what chart.py writes."""
    for removed in (
        rf"{chart.BEGIN}.*?{chart.END}",
        *(r"^```.*?^```", "<!--.*?-->", "<picture>.*?</picture>", r"(?<=\])\(.*?\)"),
    ):
        text = re.sub(removed, "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^[|>].*", "", text, flags=re.MULTILINE)


def test_no_number_of_the_readme_is_unproven(bake: Bake) -> None:
    measured = (TEMPLATE / "tests" / "onloop" / "test_measure.py").read_text()
    [hops] = re.findall(r"makes_fifteen.*?len\(hops\) == (\d+)", measured, re.DOTALL)
    compat = ONLOOP / "src" / "onloop" / "_compat.py"
    [names] = [
        ast.literal_eval(node.value)
        for node in ast.parse(compat.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NAMES"
    ]
    private = sum(len(of_module.split()) for of_module in names.values())
    owned = [
        p for p in sources(bake().path) if p.parts[-2] not in ("tests", "migrations")
    ]
    assert lines(*owned) < 700
    oldest, newest = CONTEXT["django_version"]
    pythons = re.findall(r"\d\.\d+", CONTEXT["__python"])
    python = next(p for p in pythons if p != oldest)
    newer = next(p for p in pythons if p not in (oldest, python))
    said = prose(README)
    for claim in (
        f"makes {hops} thread hops",
        "under 700 lines of Python",
        f"uses {private} names",
        f"**Django {oldest} and {newest}**",
        f"Python {python} or newer",
        f"{newer} with Django {newest}",
        f"Django {newest} requires Python {newer}+",
        "http://127.0.0.1:8000/",
        "make run PORT=8001",
        # tests/template/test_generation.py generates with it.
        "[Cookiecutter] 2.1 or newer",
    ):
        assert claim in said, claim
        said = said.replace(claim, "")
    assert not re.findall(r".*\d.*", said)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.parent.name)
def test_links_and_commands_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#)(.+?)\)|(?:src|srcset)=\"(.+?)\"", text)
    for link in filter(None, sum(links, ())):
        path, _, anchor = link.replace("%7B", "{").replace("%7D", "}").partition("#")
        assert (document.parent / path).exists(), link
        if anchor:
            heading = rf"^#+ {anchor.replace('-', ' ')}$"
            linked = (document.parent / path).read_text(encoding="utf-8")
            assert re.search(heading, linked, re.MULTILINE | re.IGNORECASE), link
    makefile = (TEMPLATE / "Makefile").read_text(encoding="utf-8")
    [targets] = re.findall(r"^\.PHONY: (.*)", makefile, re.MULTILINE)
    for target in re.findall(r"(?:`|^    )make (\w[\w-]*)", text, re.MULTILINE):
        assert target in targets.split(), target


MODULES = {
    path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
    for root in (TEMPLATE, TREE, ONLOOP / "src")
    for folder in ("hooks", "config", "home", "serving", "onloop", "cookiecutter.json")
    for path in (root / folder, *(root / folder).rglob("*.py"))
    if path.is_file()
}
FLOW, SEQUENCE = re.findall(r"```mermaid\n(.*?)```", CONTRIBUTING, re.DOTALL)


def is_defined(name: str, text: str) -> bool:
    return bool(re.search(rf"^ *(class|(async )?def) {name}\b", text, re.MULTILINE))


def test_arrows_between_files_are_names_that_one_defines_and_the_other_uses() -> None:
    node = r"(\w+)(?:\[\"[^\"]+\"\])?"
    files = dict(re.findall(r"(\w+)\[\"([^\"]+\.\w+)\"\]", FLOW))
    assert {*files.values()} <= MODULES.keys()
    arrows = re.findall(rf"{node} -- (\w+) --> {node}", FLOW)
    assert len(arrows) == FLOW.count(" -- ") > 1
    for user, name, definer in arrows:
        if name != "generates":
            assert is_defined(name, MODULES[files[definer]]), name
            assert re.search(rf"\b{name}\b", MODULES[files[user]]), name


def test_names_on_the_way_of_a_request_are_in_the_code() -> None:
    code = "\n".join(MODULES.values())
    participants = re.findall(r"participant \w+ as (\w+)", SEQUENCE)
    assert participants.pop(0) == "uvicorn"
    called = re.findall(r"(\w+)\(\)", SEQUENCE)
    classes = re.findall(r": ([A-Z]\w+[A-Z]\w+)", SEQUENCE)
    assert participants and called and classes
    for name in (*participants, *called, *classes):
        assert is_defined(name, code), name


def test_contributing_names_files_and_tests_that_exist() -> None:
    text = re.sub(r"^```.*?^```", "", CONTRIBUTING, flags=re.MULTILINE | re.DOTALL)
    modules = (TEMPLATE / "tests").rglob("test_*.py")
    tests = "\n".join(path.read_text(encoding="utf-8") for path in modules)
    for name in re.findall(r"`(test_\w+)`", text):
        assert is_defined(name, tests), name
    for name in re.findall(r"`([\w{}.-]+/[\w{}./-]*|\w+\.(?:md|json|toml))`", text):
        if not name.startswith("build/"):
            roots = (TEMPLATE, TREE, ONLOOP / "src")
            assert any((root / name).exists() for root in roots), name
