"""Any text is refused in one sentence, or shown exactly where a person sees it."""

import ast
import os
import re
import tomllib
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from cookiecutter.generate import generate_context
from cookiecutter.prompt import prompt_for_config
from cookiecutter.utils import create_env_with_context
from dotenv import dotenv_values
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jinja2 import FileSystemLoader
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.template.linters import lint
from tests.template.prompts import CONTEXT, TEXTS
from tests.template.service import TEMPLATE, TREE

# The answers with which a service has the most files, and a text in each of them.
WITH_ALL = {"deploy": "kubernetes", "metrics": "prometheus", "api": "ninja"}
# Of each syntax that an answer ends up in or passes on its way.
FRAGMENTS = [
    *("{{ 7*7 }}", "{% raw %}", "{#", "# % if x", "}}", "%}", "#", " # ", "\\", "\\n"),
    *('"', "'", '"""', "`", "``", "|", "\\|", "${HOME}", "$(id)", "$x$", "%s", "%(a)s"),
    *("<b>", "</title>", "<!--", "&amp;", "&#55296;", "*a*", "_b_", "~~", "[a](b)"),
    *(": ", "- ", "~", "null", "!!int", "[x]"),
    *("\\x22", "\\N{DASH}", "\u202e", "\ufeff"),
    *("\U0001f469\u200d\U0001f680", "\u0645\u06cc\u200c\u062e", "e\u0301", "\u00e9"),
    *("\u041c", "\ud800", "\udcff", "\x00", "\x1b[31m", "\r\n", "\u2028", " ", "\t"),
]
ASCII = st.characters(min_codepoint=0x20, max_codepoint=0x7E)
ANY = st.characters(exclude_categories=[])
TEXT = st.lists(
    st.sampled_from(FRAGMENTS)
    | st.text(ASCII, min_size=1, max_size=9)
    | st.text(ANY, max_size=3),
    max_size=6,
).map("".join)
# Without it, as in `make test`, few and the same each time.
EXAMPLES = int(os.environ.get("HOSTILE_EXAMPLES", "0"))
thorough = settings(
    derandomize=not EXAMPLES,
    max_examples=EXAMPLES or 30,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
ENVIRONMENT = create_env_with_context({"cookiecutter": CONTEXT})
ENVIRONMENT.loader = FileSystemLoader([TREE, TEMPLATE / "hooks"])
RENDERED = [
    path.relative_to(TREE).as_posix()
    for path in sorted(TREE.rglob("*"))
    if path.is_file()
    and "vendor" not in path.parts
    and re.search(r"\.(_*project_|_*response_h|_*readme_|_*migrate)", path.read_text())
]
Rendered = dict[str, str]


@cache
def prompts() -> dict[str, Any]:
    """Each choice made, for that is what takes cookiecutter long."""
    context = generate_context(str(TEMPLATE / "cookiecutter.json"))["cookiecutter"]
    return {
        prompt: value[0]
        if isinstance(CONTEXT[prompt], list) and prompt[0] != "_"
        else value
        for prompt, value in context.items()
    }


def typed(text: str) -> str:
    """The default that is this text, for cookiecutter evaluates defaults."""
    return f"{{{{ {text!a} }}}}"


def generate(**answers: str) -> Rendered | str:
    """The files that hold an answer, or why the answers are refused."""
    context = {"cookiecutter": prompts() | answers}
    complete = {"cookiecutter": prompt_for_config(context, no_input=True)}
    assert "/" not in complete["cookiecutter"]["project_slug"]
    hook = ENVIRONMENT.get_template("pre_gen_project.py").render(complete)
    with pytest.raises(SystemExit) as ended:
        exec(compile(hook, "pre_gen_project.py", "exec"), {})  # noqa: S102
    if ended.value.code is not None:
        return str(ended.value.code)
    return {file: ENVIRONMENT.get_template(file).render(complete) for file in RENDERED}


def check_refusal(refusal: str, prompt: str, text: str) -> None:
    lines = refusal.splitlines()
    assert len(lines) in (1, 2)
    for line in lines:
        assert line.startswith(f"{prompt} {text!r} ")
        assert line.endswith(".")


def generate_or_refuse(prompt: str, text: str) -> Rendered | None:
    """The files, which an update must give too; None if it is refused as it should be."""
    result = generate(**{prompt: typed(text)}, project_slug="x")
    if isinstance(result, str):
        check_refusal(result, prompt, text)
        return None
    assert generate(**{prompt: text}, project_slug="x") == result
    return result


def literals(file: str) -> dict[str, Any]:
    """What module-level names and the entries of `defaults` say."""
    found: dict[str, Any] = {}
    for node in ast.parse(file).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return {**found, **found["defaults"]}


def shown(token: Token) -> str:
    """What a person sees of a heading or a cell."""
    assert token.children is not None
    kinds = ("text", "code_inline")
    return "".join(child.content for child in token.children if child.type in kinds)


def inlines(markdown: str) -> list[str]:
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    return [shown(token) for token in parser.parse(markdown) if token.type == "inline"]


def check_lint(rendered: list[Rendered], folder: Path) -> None:
    """All at once, because starting ruff takes longer than its work."""
    for number, files in enumerate(rendered):
        (folder / f"settings{number}.py").write_text(
            files["config/settings.py"], encoding="utf-8"
        )
    pyproject = rendered[0]["pyproject.toml"]
    (folder / "pyproject.toml").write_text(pyproject, encoding="utf-8")
    # How imports are sorted depends on the packages of the whole service.
    lint("ruff", "check", "--ignore", "I001", "--no-cache", ".", cwd=folder)
    lint("ruff", "format", "--check", "--no-cache", ".", cwd=folder)


def test_any_name_is_refused_or_shown_exactly(tmp_path: Path) -> None:
    accepted: list[Rendered] = []

    @thorough
    @given(TEXT | st.text(ANY) | st.text(ASCII, min_size=1))
    @example(TEXTS["project_name"])
    # Where the formatter would wrap the line.
    @example("x" * 72)
    @example("\u4e2d" * 37)
    @example("x" * 5000)
    @example("C #")
    @example("\u041c\u043e\u0441\u043a\u0432a")
    @example("&#55296; &#99999999999;")
    @example("a \\")
    @example(" a")
    @example("a  b")
    @example("# % x")
    @example("{{ 7*7 }}")
    @example("\u200d")
    def check(text: str) -> None:
        if result := generate_or_refuse("project_name", text):
            accepted.append(result)
            assert literals(result["config/settings.py"])["PROJECT_NAME"] == text
            heading, *_ = result["README.md"].splitlines()
            assert inlines(heading) == [text]

    check()
    assert len(accepted) > 8
    check_lint(accepted, tmp_path)


VALUE = TEXT | st.text(ASCII | st.just("\t"), min_size=1)


def test_any_header_is_refused_or_sent_exactly(tmp_path: Path) -> None:
    accepted: list[Rendered] = []

    @thorough
    @given(VALUE.map("X: {}".format) | st.tuples(VALUE, VALUE).map(": ".join))
    @example(TEXTS["response_header"])
    @example("X`Y: ``|``")
    @example("X: a\\")
    @example("X: " + "x" * 5000)
    @example("X: {{ 7*7 }}")
    @example("X: # %")
    def check(text: str) -> None:
        result = generate_or_refuse("response_header", text)
        if not result:
            return
        accepted.append(result)
        assert literals(result["config/settings.py"])["RESPONSE_HEADER"] == text
        [line] = re.findall(
            r"^#(RESPONSE_HEADER=.*)$", result[".env.example"], re.MULTILINE
        )
        assert dotenv_values(stream=StringIO(line)) == {"RESPONSE_HEADER": text}
        [row] = re.findall(
            r"^\| `RESPONSE_HEADER` .*$", result["README.md"], re.MULTILINE
        )
        *_, cell, _ = inlines(f"| | | |\n|-|-|-|\n{row}")
        # Blanks around it are no part of a header.
        assert cell.strip() == text.strip()

    check()
    assert len(accepted) > 8
    check_lint(accepted, tmp_path)


SLUG = st.text("abyz019-", min_size=1, max_size=64)


def check_slug(result: Rendered, slug: str) -> None:
    project = tomllib.loads(result["pyproject.toml"])["project"]
    assert project["name"] == slug
    assert literals(result["config/settings.py"])["SERVICE"] == slug
    for file, text in result.items():
        if file.startswith("deploy/"):
            for document in yaml.safe_load_all(text):
                name = document.get("metadata", {"name": slug})["name"]
                # A Service's is a part of host names, a Job's a label of its pods.
                assert re.fullmatch("[a-z][a-z0-9-]{0,62}", name)
                assert name.removeprefix(slug[:55]) in (
                    slug[55:],
                    "-migrate",
                    "-metrics",
                )


@thorough
@given(SLUG | TEXT | st.text(ANY))
@example("a" * 63)
@example("a" * 55 + "-b")
@example("null")
@example("nul")
@example("y")
@example("dj--database-url")
@example("a\n")
@example("\ud800")
@example("a\x00")
@example("..")
def test_any_slug_is_refused_or_a_name_everywhere(slug: str) -> None:
    result = generate(project_slug=typed(slug), **WITH_ALL)
    if isinstance(result, str):
        check_refusal(result, "project_slug", slug)
    else:
        check_slug(result, slug)


@pytest.mark.parametrize(
    ("slug", "reason"),
    [
        ("null", "in YAML"),
        ("y", "in YAML"),
        ("nul", "to Windows"),
        ("com1", "to Windows"),
        # What an index reads as dj-database-url.
        ("dj--database-url", "a package"),
    ],
)
def test_slug_that_means_something_else_is_refused(slug: str, reason: str) -> None:
    result = generate(project_slug=slug)
    assert isinstance(result, str)
    check_refusal(result, "project_slug", slug)
    assert reason in result


@thorough
@given(TEXT | st.text(ANY))
@example("2048")
@example("3D Printing")
@example("&#55296; &#99999999999;")
def test_slug_of_any_name_is_one(name: str) -> None:
    result = generate(project_name=typed(name))
    if isinstance(result, dict):
        slug = literals(result["config/settings.py"])["SERVICE"]
        check_slug(result, slug)
    else:
        # The slug of a name such as "Django" is reserved.
        for line in result.splitlines():
            assert line.startswith("project_name") or line.endswith("choose another.")


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("My Shop", "my-shop"),
        ("\u00dcber 9", "uber-9"),
        ("3D Printing", "d-printing"),
        ("\U0001f680", "my-async-service"),
    ],
)
def test_slug_is_derived_from_the_name(name: str, slug: str) -> None:
    result = generate(project_name=typed(name))
    assert isinstance(result, dict), result
    check_slug(result, slug)


def test_header_of_any_length_keeps_the_settings_formatted(tmp_path: Path) -> None:
    headers = ["X-Long: " + "x" * length for length in range(20, 90, 7)]
    rendered = [generate(response_header=typed(header)) for header in headers]
    accepted = [result for result in rendered if isinstance(result, dict)]
    assert len(accepted) == len(headers)
    check_lint(accepted, tmp_path)


@pytest.mark.parametrize("prompt", [p for p, v in CONTEXT.items() if type(v) is list])
@given(text=TEXT)
@settings(thorough, max_examples=5)
def test_no_other_choice_is_taken(prompt: str, text: str) -> None:
    if text not in CONTEXT[prompt]:
        with pytest.raises(ValueError, match="but the choices are"):
            generate_context(
                str(TEMPLATE / "cookiecutter.json"), extra_context={prompt: text}
            )


@thorough
@given(st.sampled_from(["yes", "No", "TRUE", "0", "off", "y"]) | TEXT)
def test_older_cookiecutter_takes_no_other_text_for_the_boolean(text: str) -> None:
    # From the command line it keeps a text.
    result = generate(admin=typed(text))
    if isinstance(result, str):
        check_refusal(result, "admin", text)
    else:
        admin = '"django.contrib.admin"' in result["config/settings.py"]
        assert admin == (text.lower() in ("1", "t", "true", "y", "yes", "on"))
