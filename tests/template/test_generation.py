"""The same answers give the same bytes: anywhere, offline, and by any cookiecutter."""

import os
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from tests.template import interpreters
from tests.template.conftest import Bake
from tests.template.service import TEMPLATE, TREE, generated_files

# Python imports this before anything else, cookiecutter's own and that of the hooks.
GUARD = """
import sys


def refuse(event, arguments):
    if event.startswith("socket.") or (
        event == "subprocess.Popen" and arguments[0] != sys.executable
    ):
        raise RuntimeError(f"{event}{arguments}")


sys.addaudithook(refuse)
"""
OLDEST = "2.1"


@pytest.fixture(scope="module")
def usual(bake: Bake) -> dict[str, bytes]:
    """The files for answers that no other test installs."""
    return generated_files(bake(admin="false", metrics="prometheus").path)


ANSWERS = ("admin=no", "metrics=prometheus")


def test_nothing_but_python_is_needed_and_the_same_bytes_come_out(
    tmp_path: Path, usual: dict[str, bytes]
) -> None:
    guard = tmp_path / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(GUARD)
    output = tmp_path / "two words \u00e9 \u4e2d $HOME 'q'"
    output.mkdir()
    # cookiecutter keeps the answers: below HOME, unless its configuration says where.
    (guard / "config.yaml").write_text(f"replay_dir: '{guard}'")
    environment = {
        # Neither git nor uv, and a folder that root cannot write to, either.
        "PATH": os.devnull,
        "HOME": f"{os.devnull}/home",
        "COOKIECUTTER_CONFIG": str(guard / "config.yaml"),
        "PYTHONPATH": str(guard),
    }
    command = [sys.executable, "-m", "cookiecutter", "--no-input", str(TEMPLATE)]
    done = subprocess.run(
        [*command, *ANSWERS],
        cwd=output,
        env=environment,
        umask=0o077,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert generated_files(output / "my-async-service") == usual


def test_lines_end_the_same_on_each_system(
    tmp_path: Path, usual: dict[str, bytes]
) -> None:
    assert [name for name, text in usual.items() if ends_lines_otherwise(text)] == []
    # As git for Windows is installed.
    windows = ("-c", "core.autocrlf=true", "-c", "core.eol=crlf")
    clone = tmp_path / "clone"
    subprocess.run(["git", *windows, "clone", "-q", TEMPLATE, clone], check=True)
    files = [path for path in (clone / TREE.name).rglob("*") if path.is_file()]
    assert [path for path in files if ends_lines_otherwise(path.read_bytes())] == []


def ends_lines_otherwise(content: bytes) -> bool:
    is_picture = b"\0" in content
    return b"\r" in content and not is_picture


def test_names_are_names_on_windows_and_macos_too(usual: dict[str, bytes]) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=TEMPLATE, capture_output=True, check=True
    )
    for names in (listed.stdout.decode().split("\0")[:-1], list(usual)):
        assert len({name.casefold() for name in names}) == len(names) > 50
        for name in names:
            # Of the 260 that Windows allows in all.
            assert len(name) < 120
            for part in PurePosixPath(name).parts:
                assert re.fullmatch(r'[^\x00-\x1f<>:"\\|?*]*[^ .]', part), name
                reserved = r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?"
                assert not re.fullmatch(reserved, part), name


def cookiecutter(
    version: str, folder: Path, *arguments: str, typed: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run in an environment of its own, in folder/output."""
    (folder / "output").mkdir(exist_ok=True)
    run = [interpreters.UV, "tool", "run", "--quiet"]
    run += ["--python", interpreters.find("3.11")]
    # 1.7 imports pkg_resources, which came with Python in its days.
    run += ["--from", f"cookiecutter=={version}", "--with", "setuptools<80"]
    return subprocess.run(
        [*run, "cookiecutter", str(TEMPLATE), *arguments],
        cwd=folder / "output",
        env=os.environ | {"HOME": str(folder), "UV_CACHE_DIR": interpreters.uv_cache()},
        input=typed,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def test_oldest_cookiecutter_generates_the_same(
    tmp_path: Path, usual: dict[str, bytes]
) -> None:
    done = cookiecutter(f"{OLDEST}.0", tmp_path, "--no-input", *ANSWERS)
    assert done.returncode == 0, done.stdout
    assert generated_files(tmp_path / "output" / "my-async-service") == usual


def test_older_cookiecutter_says_which_one_is_needed(tmp_path: Path) -> None:
    done = cookiecutter("1.7.3", tmp_path, "--no-input")
    assert done.returncode == 1
    needed = (
        f"This template needs cookiecutter {OLDEST} or newer: upgrade cookiecutter.\n"
    )
    assert done.stdout.startswith(needed)
    assert not list((tmp_path / "output").iterdir())
    # Who is asked sees it in the second question.
    done = cookiecutter("1.7.3", tmp_path, typed="\n\n")
    assert f"project_slug [cookiecutter-{OLDEST}-or-newer-is-needed]" in done.stdout


def test_readme_names_the_oldest_cookiecutter() -> None:
    readme = (TEMPLATE / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"Cookiecutter\]\(\S+\) {re.escape(OLDEST)} or newer", readme)
