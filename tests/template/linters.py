"""The linters for deployment files, by the name of the file."""

import sys
from pathlib import Path

from tests.template.service import succeed

LINTED: dict[str, list[tuple[str, ...]]] = {
    "Dockerfile": [("hadolint",)],
    "compose.yaml": [("check-jsonschema", "--builtin-schema", "vendor.compose-spec")],
    "ci.yml": [
        ("check-jsonschema", "--builtin-schema", "vendor.github-workflows"),
        ("zizmor", "--offline", "--persona", "pedantic"),
    ],
    ".gitlab-ci.yml": [("check-jsonschema", "--builtin-schema", "vendor.gitlab-ci")],
}


def lint(*command: str, cwd: Path) -> None:
    succeed([Path(sys.executable).with_name(command[0]), *command[1:]], cwd)
