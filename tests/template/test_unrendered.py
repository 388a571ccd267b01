"""The unrendered template is Python: it parses, lints and type-checks."""

import ast
import re
from pathlib import Path

import pytest

from tests.template.conftest import Bake
from tests.template.service import TREE, Service, succeed

# vendor/ is copied without rendering.
OTHERS = {"__pycache__", ".venv", "vendor"}
PYTHON = sorted(
    path
    for path in TREE.rglob("*.py")
    if OTHERS.isdisjoint(path.relative_to(TREE).parts)
)


@pytest.fixture(scope="module")
def superset(bake: Bake) -> Service:
    """The service whose environment can import every file of the template."""
    answers = {"database": "postgresql", "api": "ninja", "metrics": "prometheus"}
    return bake(django_version="6.1", admin="true", **answers)


def run(superset: Service, *command: str) -> None:
    # The environment replaces defaults that are still Jinja.
    environment = superset.environment | {
        "SECRET_KEY": "unrendered",
        "DATABASE_URL": "sqlite:///:memory:",
        "LOG_FORMAT": "text",
        "RESPONSE_HEADER": "X-Status: OK",
        "RESPONSE_HEADER_WHEN": "always",
        "SERVER_TIMING": "never",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    uv_run = ("uv", "run", "--project", str(superset.path))
    succeed([*uv_run, *command], TREE, environment)


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(TREE)))
def test_file_parses_and_holds_jinja_only_in_strings_and_comments(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            # {{ x }} outside of a string is a set in a set.
            assert not (isinstance(node, ast.Set) and isinstance(child, ast.Set))


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(TREE)))
def test_no_condition_stands_around_an_import(path: Path) -> None:
    blocks = re.findall(
        r"^\s*# % if.*?^\s*# % endif",
        path.read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    for block in blocks:
        assert not re.search(r"^\s*(import|from) ", block, re.MULTILINE), block


def test_lints(superset: Service) -> None:
    config = ("--no-cache", "--config", str(superset.path / "pyproject.toml"))
    # RUF200 reads pyproject.toml, whose versions depend on answers.
    run(superset, "ruff", "check", *config, "--ignore", "RUF200", ".")
    run(superset, "ruff", "format", "--check", *config, ".")


def test_types(superset: Service, tmp_path: Path) -> None:
    # With the documented module, which elsewhere would cost another run of mypy.
    [module] = [c for c in superset.python_examples() if "UserAdmin" in c]
    (tmp_path / "documented.py").write_text(module)
    config = ("--config-file", str(superset.path / "pyproject.toml"))
    run(
        superset,
        "mypy",
        "--cache-dir",
        str(superset.path / ".mypy_cache"),
        *config,
        *(".", str(tmp_path / "documented.py")),
    )


def test_links_of_the_pages_work_below_a_path() -> None:
    """Where a proxy has the service below /shop/, and FORCE_SCRIPT_NAME says so."""
    pages = {path.name: path.read_text() for path in TREE.glob("*/templates/*/*.html")}
    assert pages.keys() == {"error.html", "index.html"}
    for name, page in pages.items():
        assert not re.findall(r'(?:action|href|src)="/.*?"', page), name
