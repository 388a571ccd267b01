"""What reads the files of a service before anybody runs them."""

import ast
import json
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.template.service import succeed

# By the name of the file.
LINTED: dict[str, list[tuple[str, ...]]] = {
    "Dockerfile": [("hadolint",)],
    "compose.yaml": [("check-jsonschema", "--builtin-schema", "vendor.compose-spec")],
    "ci.yml": [
        ("check-jsonschema", "--builtin-schema", "vendor.github-workflows"),
        ("zizmor", "--offline", "--persona", "pedantic"),
    ],
    ".gitlab-ci.yml": [("check-jsonschema", "--builtin-schema", "vendor.gitlab-ci")],
}


PARSERS: dict[str, Callable[[str], Any]] = {
    ".py": ast.parse,
    ".toml": tomllib.loads,
    ".json": json.loads,
    ".yaml": lambda text: [*yaml.safe_load_all(text)],
    ".yml": lambda text: [*yaml.safe_load_all(text)],
}


def parse(file: str, text: str) -> None:
    """Fails unless it was rendered to the end and is what its name says."""
    # Answers may hold braces; only the template speaks of a cookiecutter.answer.
    assert not re.search(r"cookiecutter(?!-async-django|\.json)", text), file
    assert not re.search(r"^\s*# %", text, re.MULTILINE), file
    PARSERS.get(Path(file).suffix, str)(text)


def executable(name: str) -> Path:
    """Of the environment that the tests run in."""
    return Path(sys.executable).with_name(name)


def lint(*command: str, cwd: Path) -> None:
    succeed([executable(command[0]), *command[1:]], cwd)
