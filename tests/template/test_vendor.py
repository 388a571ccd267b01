"""vendor/onloop is a distribution like any other, and nobody edits it."""

import ast
import io
import re
import shutil
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.template import interpreters
from tests.template.conftest import Bake
from tests.template.service import ONLOOP, TREE, Server, Service, inherited, succeed

LIBRARY = ONLOOP / "src" / "onloop"


def sources(folder: Path) -> Iterator[Path]:
    others = {"vendor", "__pycache__", ".venv"}
    for path in sorted(folder.rglob("*.py")):
        if others.isdisjoint(path.relative_to(folder).parts):
            yield path


def imports(path: Path) -> Iterator[str]:
    """The dotted names of modules, and of the objects in them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (f"{module}.{alias.name}" for alias in node.names)


def dotted_strings(path: Path) -> Iterator[str]:
    """The names that may be imported, as in a settings module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"^\w+(?:\.\w+)+$", node.value)


# The boundary between the two products.


def test_library_knows_nothing_of_the_service() -> None:
    own = {path.name for path in TREE.iterdir() if (path / "__init__.py").exists()}
    assert own == {"config", "home", "serving", "tests", "users"}
    for path in sources(LIBRARY):
        used = {name.partition(".")[0] for name in imports(path)}
        assert not used & own, path.name
        named = {name.partition(".")[0] for name in dotted_strings(path)}
        assert not named & own, path.name


def public_names() -> set[str]:
    """The modules of the README's table, and what is in them."""
    readme = (ONLOOP / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(onloop\.[a-z_.]+)` \| (.*)", readme, re.MULTILINE)
    names = {f"{m}.{name}" for m, text in rows for name in re.findall(r"`(\w+)`", text)}
    return names.union(module for module, _ in rows)


def test_service_uses_public_names_of_the_library_only() -> None:
    used = {
        name
        for path in sources(TREE)
        for name in (*imports(path), *dotted_strings(path))
        if name.partition(".")[0] == "onloop"
    }
    text = (TREE / "config" / "logging.json").read_text(encoding="utf-8")
    used.update(re.findall(r'"(onloop\.[\w.]+)"', text))
    assert used <= public_names()
    assert "onloop.asgi.get_asgi_application" in used


# A dependency, built from the folder.


@pytest.fixture(scope="module")
def service(bake: Bake, tmp_path_factory: pytest.TempPathFactory) -> Service:
    """A service with its own environment, which these tests change."""
    service = bake(deploy="none", ci="none").copy(tmp_path_factory.mktemp("vendor"))
    service.sync()
    return service


PRINT = "import onloop.asgi as a; print(a.__file__); print(getattr(a, 'changed', 0))"


@pytest.mark.xdist_group("vendor")
def test_change_in_it_is_rebuilt_by_the_next_run(service: Service) -> None:
    print_changed = ["uv", "run", "python", "-c", PRINT]
    before = succeed(print_changed, service.path, service.environment).splitlines()
    assert f"{service.path}/.venv/" in before[-2]
    assert before[-1] == "0"
    source = service.path / "vendor" / "onloop" / "src" / "onloop" / "asgi.py"
    text = source.read_text(encoding="utf-8")
    source.write_text(f"{text}changed = 1\n", encoding="utf-8")
    try:
        after = succeed(print_changed, service.path, service.environment).splitlines()
    finally:
        source.write_text(text, encoding="utf-8")
    assert after[-2:] == [before[-2], "1"]


BROKEN = """\
import os,sys
def test_of_the_library(): assert "unreachable" is 1
"""


@pytest.mark.xdist_group("vendor")
def test_tools_of_the_service_leave_it_alone(service: Service) -> None:
    vendor = service.path / "vendor" / "onloop"
    broken = [vendor / "src" / "onloop" / "test_broken.py", vendor / "test_broken.py"]
    for path in broken:
        path.write_text(BROKEN, encoding="utf-8")
    # Like pre-commit, which passes the names of the files.
    names = " ".join(str(path.relative_to(service.path)) for path in broken)
    try:
        for files in (".", names):
            service.run(f"uv run ruff check {files}")
            service.run(f"uv run ruff format --check {files}")
        service.run("uv run mypy .")
        coverage = "uv run --with coverage coverage"
        # All are collected, and some run.
        run = f"{coverage} run -m pytest -v . -k 'test_home or test_broken'"
        assert "test_broken" not in service.run(run)
        report = service.run(f"{coverage} report")
    finally:
        for path in broken:
            path.unlink()
    assert re.search(r"^home/views\.py ", report, re.MULTILINE)
    assert "onloop" not in report


@pytest.mark.xdist_group("vendor")
def test_service_without_the_folder_gets_it_from_an_index(
    service: Service, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    index = tmp_path / "index"
    build = [interpreters.UV, "build", "--wheel", "--out-dir", str(index)]
    succeed([*build, "vendor/onloop"], copy.path, inherited())
    line = 'django-onloop = { path = "vendor/onloop" }\n'
    copy.replace("pyproject.toml", line, "")
    shutil.rmtree(copy.path / "vendor")
    environment = {"UV_FIND_LINKS": str(index)}
    # In its cache uv knows a wheel by its path, and there may lie that of an earlier run.
    copy.run("uv sync --refresh-package django-onloop", **environment)
    [installed] = copy.path.glob(".venv/lib/*/site-packages/onloop")
    for path in sources(LIBRARY):
        file = installed / path.relative_to(LIBRARY)
        assert file.read_bytes() == path.read_bytes()
    lock = (copy.path / "uv.lock").read_text(encoding="utf-8")
    [source] = re.findall(r'name = "django-onloop"\n.*\nsource = (.*)\n', lock)
    assert str(index) in source or "registry" in source
    command, *_ = copy.readme_commands()
    with copy.serve(f"{command} 8000 --noreload", **environment) as server:
        assert_served(server)


def assert_served(server: Server) -> None:
    assert server.get("/hello/you/").status == 200


PRINT_PANEL = """
import sys
from config import asgi
from django.urls import Resolver404, resolve
try:
    print(resolve("/__requests__/").route)
except Resolver404:
    print(404, [name for name in sys.modules if name.startswith("onloop.panel")])
"""


@pytest.mark.xdist_group("vendor")
@pytest.mark.parametrize(
    ("debug", "found"), [("true", "__requests__/"), ("false", "404 []")]
)
def test_panel_is_only_there_in_development(
    service: Service, debug: str, found: str
) -> None:
    command = ["uv", "run", "python", "-c", PRINT_PANEL]
    environment = service.environment | {"DEBUG": debug}
    printed = succeed(command, service.path, environment)
    assert printed.splitlines()[-1] == found


# Limits, so that the service can be read in half an hour.


def lines(*paths: Path) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def test_service_is_small(bake: Bake) -> None:
    service = bake()
    # Django writes the migrations.
    written = ("tests", "migrations")
    files = [path for path in sources(service.path) if path.parts[-2] not in written]
    assert lines(*files) <= 700
    assert lines(*(service.path / "tests").glob("*.py")) <= 600


@pytest.mark.parametrize(
    ("file", "limit"),
    [
        ("serving/middleware.py", 150),
        ("serving/health.py", 90),
        ("config/environment.py", 120),
    ],
)
def test_file_fits(file: str, limit: int) -> None:
    assert lines(TREE / file) <= limit


def test_library_is_small() -> None:
    assert sum(code_lines(path) for path in sources(LIBRARY)) <= 3370


def code_lines(path: Path) -> int:
    """Without blank lines, comments and docstrings."""
    text = path.read_text(encoding="utf-8")
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT}
    layout |= {tokenize.DEDENT, tokenize.ENDMARKER}
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in layout:
            found.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found.difference_update(range(node.lineno, (node.end_lineno or 0) + 1))
    return len(found)
