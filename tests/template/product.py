"""Every combination of all choices: rendered, parsed and linted (`make test-all`).

Each combination is rendered, with cookiecutter's functions in one Jinja environment, and
what the hook removes is removed; test_product.py compares this with what cookiecutter
writes. Each text that a file has in any combination is linted once. A linter sees it in
its folder, but beside texts of other combinations. So what depends on several files at
once is proven by the services of test_combinations.py only: types, tests, and whether an
import is the service's own where another combination removes the folder.
"""

import itertools
import json
import os
import shutil
import sys
import tempfile
import time
import tomllib
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from cookiecutter.generate import generate_context, is_copy_only_path
from cookiecutter.prompt import prompt_for_config
from cookiecutter.utils import create_env_with_context
from jinja2 import TemplateError

from tests.template.linters import LINTED, executable, parse
from tests.template.prompts import DEFAULTS, TEXTS, VARIED, name
from tests.template.service import TEMPLATE, TREE, finish
from tests.template.test_combinations import files_of

Answers = dict[str, str]
# A file and its text, with what its pyproject.toml tells ruff about it.
Content = tuple[str, str, str]
# The numbers of the combinations that have it.
Contents = dict[Content, list[int]]
INVALID = (
    *(AssertionError, SyntaxError, ValueError, yaml.YAMLError),
    kubernetes_validate.ValidationError,
)
KUBERNETES = list(kubernetes_validate.utils.all_versions())[-1]


def combinations(*prompts: str) -> list[Answers]:
    """All, or those of these prompts; each with the plain texts and with the odd ones."""
    chosen = prompts or [prompt for prompt in VARIED if prompt not in TEXTS]
    return [
        DEFAULTS | dict(zip(chosen, answers, strict=True)) | texts
        for answers in itertools.product(*(VARIED[prompt] for prompt in chosen))
        for texts in ({}, TEXTS)
    ]


class Renderer:
    def __init__(self, template: Path = TEMPLATE) -> None:
        self.context_file = str(template / "cookiecutter.json")
        context = generate_context(self.context_file)
        env = create_env_with_context(context)
        hook = template / "hooks" / "post_gen_project.py"
        self.hook = env.from_string(hook.read_text(encoding="utf-8"))
        tree = template / "{{cookiecutter.project_slug}}"
        self.copied: dict[str, str] = {}
        self.templates = {}
        for path in sorted(tree.rglob("*")):
            file = path.relative_to(tree)
            if path.is_dir() or "__pycache__" in file.parts:
                continue
            # A picture is copied; no text of it is looked at.
            text = path.read_bytes().decode(errors="surrogateescape")
            if any(is_copy_only_path(str(p), context) for p in (file, *file.parents)):
                self.copied[file.as_posix()] = text
            else:
                self.templates[file.as_posix()] = env.from_string(text)

    def render(self, answers: Answers) -> dict[str, str]:
        """The text of each file of the service; .env has an empty SECRET_KEY."""
        context = generate_context(self.context_file, extra_context=answers)
        context["cookiecutter"] = prompt_for_config(context, no_input=True)
        files = self.copied | {
            file: template.render(**context)
            for file, template in self.templates.items()
        }
        for path in removed(self.hook.render(**context)):
            found = [f for f in files if f == path or f.startswith(f"{path}/")]
            assert found, f"the hook removes {path}, which is not there"
            for file in found:
                del files[file]
        return files | {".env": files[".env.example"]}


@cache
def removed(hook: str) -> list[str]:
    tables: dict[str, Any] = {}
    # Its imports and tables; the rest works on the folder that it stands in.
    exec(hook.partition("\n\n\ndef ")[0], tables)  # noqa: S102
    by_answer = tables["REMOVE"].items()
    return [path for (_, answer), paths in by_answer for path in paths.get(answer, [])]


@cache
def ruff_settings(pyproject: str) -> str:
    found = tomllib.loads(pyproject)
    return json.dumps([found["project"]["requires-python"], found["tool"]["ruff"]])


def collect(
    numbered: Iterable[tuple[int, Answers]], template: Path = TEMPLATE
) -> tuple[Contents, dict[int, str]]:
    """The contents of these combinations, and what is wrong with a combination."""
    renderer = Renderer(template)
    contents: Contents = defaultdict(list)
    faults: dict[int, str] = {}
    for number, answers in numbered:
        try:
            files = renderer.render(answers)
            settings = ruff_settings(files["pyproject.toml"])
            expected = files_of(answers)
            assert files.keys() == expected, sorted(files.keys() ^ expected)
        except (AssertionError, TemplateError, tomllib.TOMLDecodeError) as error:
            faults[number] = f"{type(error).__name__}: {error}"
            continue
        for file, text in files.items():
            if not file.startswith("vendor/"):
                of_ruff = file.endswith((".py", "pyproject.toml"))
                contents[file, text, settings if of_ruff else ""].append(number)
    return contents, faults


def lint(contents: Contents, folder: Path) -> dict[Content, str]:
    """What is wrong with a content."""
    faults: dict[Content, str] = {}
    written: dict[str, Content] = {}
    linted = [c for c in contents if c[2] or Path(c[0]).name in LINTED]
    for tree in trees(linted):
        here = folder / f"{len(written):06}"
        for content in tree:
            path = here / content[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content[1].encode())
            shutil.copymode(TREE / content[0], path)
            written[path.relative_to(folder).as_posix()] = content

    def run(command: tuple[str, ...], paths: list[str]) -> None:
        done = finish([executable(command[0]), *command[1:], *paths], folder)
        if done.returncode:
            named = [path for path in written if path in done.stdout]
            assert named, f"{command} failed: {done.stdout}"
            faults.update((written[path], done.stdout) for path in named)

    for content in contents:
        try:
            validate(*content[:2])
        except INVALID as error:
            faults[content] = f"{type(error).__name__}: {error}"
    # A folder may lack the service's other modules.
    own = sorted({c[0].partition("/")[0] for c in linted if c[0].endswith(".py")})
    first_party = f"lint.isort.known-first-party={json.dumps(own)}"
    ruff = ("--no-cache", "--output-format", "concise", "--config", first_party)
    run(("ruff", "check", *ruff), ["."])
    run(("ruff", "format", "--check", *ruff), ["."])
    for base, commands in LINTED.items():
        paths = [path for path in written if Path(path).name == base]
        assert paths, base
        for command in commands:
            run(command, paths)
    return faults


def trees(contents: Iterable[Content]) -> Iterable[list[Content]]:
    """The contents in as few folders as have room for them, by ruff's settings."""
    files: dict[tuple[str, str], list[Content]] = defaultdict(list)
    for content in contents:
        files[content[2], content[0]].append(content)
    for settings in dict.fromkeys(settings for settings, _ in files):
        own = [found for (other, _), found in files.items() if other == settings]
        for number in range(max(map(len, own))):
            tree = [found[number] for found in own if number < len(found)]
            if settings and not any(content[0] == "pyproject.toml" for content in tree):
                tree.append(files[settings, "pyproject.toml"][0])
            yield tree


def validate(file: str, text: str) -> None:
    parse(file, text)
    if Path(file).parent == Path("deploy/base"):
        for document in yaml.safe_load_all(text):
            # No part of Kubernetes itself.
            if document["kind"] not in ("Kustomization", "ServiceMonitor"):
                kubernetes_validate.validate(document, KUBERNETES, strict=True)


def main() -> int:
    start = time.monotonic()
    every = combinations()
    processes = os.cpu_count() or 1
    numbered = [*enumerate(every)]
    contents: Contents = defaultdict(list)
    broken: dict[int, str] = {}
    with ProcessPoolExecutor(processes) as pool:
        for found, faults in pool.map(
            collect, (numbered[share::processes] for share in range(processes))
        ):
            broken |= faults
            for content, numbers in found.items():
                contents[content] += numbers
    with tempfile.TemporaryDirectory() as folder:
        wrong = lint(contents, Path(folder))
    for content, fault in wrong.items():
        broken |= dict.fromkeys(contents[content], f"{content[0]}: {fault}")
    for fault in dict.fromkeys(broken.values()):
        first, *more = [number for number in sorted(broken) if broken[number] == fault]
        print(f"{name(every[first])} and {len(more)} more: {fault}\n")
    print(
        f"{len(every)} combinations rendered, {len(contents)} texts of files linted, "
        f"{len(broken)} combinations broken, in {time.monotonic() - start:.0f} seconds"
    )
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
