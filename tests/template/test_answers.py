"""Bad answers are refused before anything is written; odd ones are rendered safely."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from cookiecutter import main
from cookiecutter.exceptions import FailedHookException
from cookiecutter.generate import generate_context, generate_files
from cookiecutter.prompt import prompt_for_config
from dotenv import dotenv_values

from tests.template.conftest import Bake
from tests.template.prompts import CONTEXT, DEFAULTS, TEXTS, choices
from tests.template.service import TEMPLATE, TREE, Service, finish, succeed

CleanEnvironment = dict[str, str]
# Runs a hook; with another platform, Python could not import these.
ON_WINDOWS = """
import io, pathlib, runpy, secrets, shlex, shutil, sys, tempfile
sys.platform = "win32"
runpy.run_path(sys.argv[1])
"""


def cookiecutter(
    output: Path, environment: CleanEnvironment, *arguments: str
) -> tuple[int, list[str]]:
    command = [sys.executable, "-m", "cookiecutter", "--no-input", str(TEMPLATE)]
    done = finish([*command, *arguments], output, environment)
    # cookiecutter's own report of the failed hook, with a traceback, follows.
    own, _, _ = done.stdout.partition("ERROR: Stopping generation")
    return done.returncode, own.splitlines()


def test_thirteen_prompts_have_a_label_for_each_choice() -> None:
    assert list(DEFAULTS) == [
        "project_name",
        "project_slug",
        "django_version",
        "log_format",
        "response_header",
        "header_condition",
        "server_timing",
        "database",
        "admin",
        "api",
        "metrics",
        "deploy",
        "ci",
    ]
    assert CONTEXT["__prompts__"].keys() == DEFAULTS.keys()
    for prompt, label in CONTEXT["__prompts__"].items():
        if isinstance(CONTEXT[prompt], list):
            assert label.keys() == {"__prompt__", *CONTEXT[prompt]}
        else:
            assert isinstance(label, str)


@pytest.mark.parametrize(
    ("prompt", "answer", "reason"),
    [
        ("project_slug", "", "1 to 63 of a-z"),
        ("project_slug", "2x", "start with a letter"),
        ("project_slug", "a b", "1 to 63 of a-z"),
        ("project_slug", "A", "1 to 63 of a-z"),
        ("project_slug", "x-", "not end with a hyphen"),
        ("project_slug", "x\ny", "1 to 63 of a-z"),
        ("project_slug", "../x", "1 to 63 of a-z"),
        ("project_slug", "x/y/z", "1 to 63 of a-z"),
        ("project_slug", "a" * 70, "1 to 63 of a-z"),
        ("project_slug", "a" * 300, "1 to 63 of a-z"),
        ("project_slug", "config", "name of a package"),
        ("project_slug", "django", "name of a package"),
        ("project_slug", "packaging", "name of a package"),
        ("project_slug", "redis", "name of a package"),
        ("project_slug", "\udcff", "1 to 63 of a-z"),
        ("response_header", "X-Status", "with a colon"),
        ("response_header", "X Status: OK", "bad name"),
        ("response_header", ": OK", "bad name"),
        ("response_header", "X-Status:", "bad value"),
        ("response_header", "X-Status: a\nX-Other: b", "bad value"),
        ("response_header", "X-Status: caf\u00e9", "bad value"),
        ("response_header", "Content-Length: 3", "the server itself sets"),
        ("response_header", "content-type: text/plain", "or one view does"),
        ("project_name", " ", "printable text on one line"),
        ("project_name", "a\nb", "printable text on one line"),
        ("project_name", "a\x1b[31mb", "printable text on one line"),
    ],
)
def test_bad_answer_is_refused_in_one_sentence(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    prompt: str,
    answer: str,
    reason: str,
) -> None:
    output = tmp_path / "output"
    output.mkdir()
    config = {"replay_dir": str(tmp_path / "replay")}
    (tmp_path / "config").write_text(json.dumps(config))
    with pytest.raises(FailedHookException):
        main.cookiecutter(
            str(TEMPLATE),
            no_input=True,
            extra_context={prompt: answer},
            config_file=str(tmp_path / "config"),
            output_dir=str(output),
        )
    own, _, _ = capfd.readouterr().err.partition("Stopping generation")
    [line] = own.splitlines()
    assert line.startswith(f"{prompt} {answer!r} ")
    assert reason in line
    assert not list(output.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"output", "config", "replay"}


def test_all_bad_answers_are_refused_at_once(
    tmp_path: Path, clean_environment: CleanEnvironment
) -> None:
    output = tmp_path / "output"
    output.mkdir()
    bad = ("project_name= ", "project_slug=../x", "response_header=X-Status")
    status, lines = cookiecutter(output, clean_environment, *bad)
    assert status == 1
    assert [line.partition(" ")[0] for line in lines] == [
        answer.partition("=")[0] for answer in bad
    ]
    assert not list(output.iterdir())


def test_last_screen_says_where_it_is_how_to_start_and_what_can_be_changed(
    tmp_path: Path, clean_environment: CleanEnvironment
) -> None:
    # cruft generates in such a folder too. Its name has what a shell would interpret.
    folder = Path(tempfile.mkdtemp(suffix=" R&D it's $HOME \u00e9"))
    ascii_terminal = {"PYTHONIOENCODING": "ascii"}
    status, lines = cookiecutter(
        tmp_path, clean_environment | ascii_terminal, "--output-dir", str(folder)
    )
    assert status == 0, lines
    assert len(lines) < 24
    assert all(line.isprintable() for line in lines)
    path = folder / "my-async-service"
    shown = str(path).replace("\u00e9", "?")
    assert f"The service is in {shown}" in lines
    [command] = [line for line in lines if line.startswith("    cd ")]
    command = command.replace("?", "\u00e9")
    assert succeed(["sh", "-c", f"{command} && pwd"], tmp_path) == f"{path}\n"
    readme = (path / "README.md").read_text(encoding="utf-8")
    starts = [line.strip() for line in lines if line.startswith("    uv run")]
    commands = [line.split("   ")[0] for line in starts]
    assert commands == re.findall(r"^    (uv run .*)$", readme, re.MULTILINE)[:2]
    example = (path / ".env.example").read_text(encoding="utf-8")
    [names] = re.findall(r"in .env: (.*)\. README", " ".join(lines))
    for name in re.split(", | and ", names):
        assert re.search(rf"^#?{name}=", example, re.MULTILINE), name
    shutil.rmtree(folder)


def test_last_screen_quotes_the_folder_as_windows_does(tmp_path: Path) -> None:
    folder = tmp_path / "R&D it's"
    folder.mkdir()
    shutil.copy(TREE / ".env.example", folder)
    hook = TEMPLATE / "hooks" / "post_gen_project.py"
    said = succeed([sys.executable, "-c", ON_WINDOWS, hook], folder)
    assert f'\n    cd "{folder}"\n' in said


def test_service_stays_when_nobody_reads_the_last_screen(
    tmp_path: Path, clean_environment: CleanEnvironment
) -> None:
    command = [sys.executable, "-m", "cookiecutter", "--no-input", str(TEMPLATE)]
    read, write = os.pipe()
    os.close(read)
    subprocess.run(
        command, cwd=tmp_path, env=clean_environment, stdout=write, check=False
    )
    os.close(write)
    assert (tmp_path / "my-async-service" / ".env").exists()


def test_no_screen_spoils_what_cruft_compares(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # As cruft does: without main(), which would add _output_dir.
    context = generate_context(str(TEMPLATE / "cookiecutter.json"))
    context["cookiecutter"] = prompt_for_config(context, no_input=True)
    for output in (tmp_path, Path(tempfile.mkdtemp())):
        generate_files(TEMPLATE, context, str(output))
        said = capfd.readouterr().out
        assert ("The service is in" in said) == (output == tmp_path)
    shutil.rmtree(output)


def test_existing_folder_is_left_alone(
    tmp_path: Path, clean_environment: CleanEnvironment
) -> None:
    mine = tmp_path / "my-async-service" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("keep")
    status, lines = cookiecutter(tmp_path, clean_environment)
    assert status == 1
    assert "already exists" in lines[0]
    assert [path.name for path in mine.parent.iterdir()] == ["mine.txt"]


def test_overwriting_keeps_what_the_user_wrote(
    tmp_path: Path, clean_environment: CleanEnvironment
) -> None:
    project = tmp_path / "my-async-service"
    cookiecutter(tmp_path, clean_environment)
    (project / ".env").write_text("SECRET_KEY=mine\n")
    (project / "home" / "templates" / "home" / "mine.html").write_text("mine")
    status, _ = cookiecutter(tmp_path, clean_environment, "--overwrite-if-exists")
    assert status == 0
    assert (project / ".env").read_text() == "SECRET_KEY=mine\n"
    assert (project / "home" / "templates" / "home" / "mine.html").exists()


def test_refused_answer_with_overwriting_keeps_what_the_user_wrote(
    tmp_path: Path, clean_environment: CleanEnvironment
) -> None:
    cookiecutter(tmp_path, clean_environment)
    project = tmp_path / "my-async-service"
    before = {p: p.stat().st_mtime_ns for p in project.rglob("*")}
    status, _ = cookiecutter(
        tmp_path, clean_environment, "--overwrite-if-exists", "response_header=bad"
    )
    assert status == 1
    for path, modified in before.items():
        assert path.is_dir() or path.stat().st_mtime_ns == modified


def test_each_service_gets_a_key_of_its_own_that_only_its_owner_reads(
    bake: Bake,
) -> None:
    keys = set()
    for database in ("sqlite", "postgresql"):
        dotenv = bake(database=database).path / ".env"
        [key] = re.findall(r"^SECRET_KEY=(\S{50,})$", dotenv.read_text(), re.MULTILINE)
        keys.add(key)
        assert dotenv.stat().st_mode & 0o777 == 0o600
    assert len(keys) == 2


def test_hooks_need_neither_git_nor_uv_nor_anything_on_the_path(
    tmp_path: Path, clean_environment: CleanEnvironment
) -> None:
    output = tmp_path / "output"
    output.mkdir()
    status, lines = cookiecutter(output, clean_environment | {"PATH": os.devnull})
    assert status == 0, lines


def test_without_env_the_service_starts_by_the_commands_of_its_readme(
    tmp_path: Path, clean_environment: CleanEnvironment, installed: Service
) -> None:
    status, _ = cookiecutter(tmp_path, clean_environment, "--accept-hooks", "no")
    assert status == 0
    project = tmp_path / "my-async-service"
    (project / ".venv").symlink_to(installed.path / ".venv")
    service = Service(project, DEFAULTS)
    command, *_ = service.readme_commands()
    with pytest.raises(AssertionError, match=r"SECRET_KEY is not set.*\.env\.example"):
        service.run("uv run manage.py check")
    commands = r"`(cp .env[^`]*|uv run python -c [^`]*)`"
    copy, generate = re.findall(commands, service.documents()["README.md"])
    service.run(copy)
    assert f"# {generate}\n" in (project / ".env").read_text()
    key = service.run(generate)
    service.replace(".env", "SECRET_KEY=\n", f"SECRET_KEY={key}")
    assert "no issues" in service.run("uv run manage.py check", DEBUG="false")
    with service.serve(f"{command} 8000") as server:
        assert json.loads(server.get("/hello/you/").body) == {"hello": "you"}


def test_every_dependency_of_a_service_is_refused_as_its_name(
    bake: Bake, tmp_path: Path
) -> None:
    """Also those that the documents tell its owner to add."""
    baked = bake(database="postgresql", admin="true", api="ninja", metrics="prometheus")
    service = baked.copy(tmp_path)
    documents = [TEMPLATE / "README.md", TREE / ".env.example"]
    documents += [*TREE.rglob("*.md"), *TREE.rglob("*.py")]
    text = "".join(path.read_text(encoding="utf-8") for path in documents)
    added = {*re.findall("`uv add ([^`]+)`", text)}
    assert len(added) > 3
    service.run(f"uv add --no-sync {' '.join(added)}")
    lock = tomllib.loads((service.path / "uv.lock").read_text(encoding="utf-8"))
    hook = (TEMPLATE / "hooks" / "pre_gen_project.py").read_text(encoding="utf-8")
    names = {package["name"] for package in lock["package"]} - {"my-async-service"}
    assert {name for name in names if f'"{name}"' not in hook} == set()


@pytest.mark.parametrize(
    "header",
    [
        TEXTS["response_header"],
        "X-All: " + "".join(map(chr, range(0x21, 0x7F))) + " # ${HOME} $(id) \\",
    ],
)
def test_header_of_the_example_is_read_as_it_was_answered(
    bake: Bake, header: str
) -> None:
    service = bake(response_header=header)
    example = (service.path / ".env.example").read_text(encoding="utf-8")
    [line] = re.findall(r"^#(RESPONSE_HEADER=.*)$", example, re.MULTILINE)
    assert dotenv_values(stream=StringIO(line)) == {"RESPONSE_HEADER": header}


def test_each_choice_is_allowed_in_the_environment_too() -> None:
    settings = (TREE / "config" / "settings.py").read_text(encoding="utf-8")
    header = part_of(TREE / "serving" / "header.py", "CONDITIONS")
    assert choices("header_condition") == list(header["CONDITIONS"])
    for prompt in ("log_format", "server_timing"):
        [allowed] = re.findall(rf'"{prompt.upper()}", (\[.*\])\)', settings)
        assert choices(prompt) == ast.literal_eval(allowed)


def part_of(path: Path, *names: str) -> dict[str, Any]:
    """Constants and functions of a file that cannot be imported here."""
    namespace: dict[str, Any] = {"re": re, "Iterator": Iterator}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else node
        if getattr(target, "id", getattr(target, "name", "")) in names:
            exec(ast.unparse(node), namespace)  # noqa: S102
    return namespace


def test_prompt_and_environment_refuse_the_same_headers() -> None:
    hook = TEMPLATE / "hooks" / "pre_gen_project.py"
    refusals = part_of(
        hook, "RESERVED_NAMES", "OTHER_MEANINGS", "SERVER_MANAGED_HEADERS", "refusals"
    )["refusals"]
    names = ("HEADER", "SERVER_MANAGED_HEADERS", "parse_header")
    header = part_of(TREE / "serving" / "header.py", *names)
    parse_header, managed = header["parse_header"], header["SERVER_MANAGED_HEADERS"]

    def accepted_at_run_time(text: str) -> bool:
        try:
            parse_header(text)
        except ValueError:
            return False
        return True

    answers = DEFAULTS | {"__project_slug": DEFAULTS["project_slug"]}
    answers |= {"__admin": "yes", "__slug": ""}
    headers = [f"{name.title()}: 1" for name in managed]
    for char in map(chr, range(0x180)):
        headers += [f"X{char}Y: 1", f"X: a{char}b", f"X: {char}", f"X:{char}b"]
    verdicts = {header: accepted_at_run_time(header) for header in headers}
    assert {*verdicts.values()} == {True, False}
    assert verdicts == {
        header: not list(refusals(answers | {"response_header": header}))
        for header in headers
    }
