"""The two commands of the README, in a new copy on an unprepared machine."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.template.service import TEMPLATE, free_port, system_path

pytestmark = pytest.mark.xdist_group("make")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that git would clone, including uncommitted changes."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=TEMPLATE,
        capture_output=True,
        text=True,
        check=True,
    )
    clone = tmp_path_factory.mktemp("make") / "clone"
    for name in listed.stdout.split("\0"):
        if name and (TEMPLATE / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            (clone / name).write_bytes((TEMPLATE / name).read_bytes())
    return clone


def environment() -> dict[str, str]:
    outer = ("VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL", "UV", "DJANGO_SETTINGS_MODULE")
    inherited = {name: os.environ[name] for name in os.environ.keys() - outer}
    return inherited | {"PATH": system_path()}


@contextmanager
def make_run(clone: Path, port: int) -> Iterator[Path]:
    """`make run`, interrupted at the end as by CONTROL-C; gives its output so far."""
    output = clone.parent / "output.txt"
    with output.open("wb") as stdout:
        process = subprocess.Popen(
            ["make", "run", f"PORT={port}"],
            cwd=clone,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stdout,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 180
        while "Application startup complete" not in output.read_text():
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.05)
        yield output
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(30)


def get(port: int, path: str) -> bytes:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path)
    body = connection.getresponse().read()
    connection.close()
    return body


def test_make_run_serves_and_says_what_to_try(clone: Path) -> None:
    port = free_port()
    with make_run(clone, port) as output:
        assert get(port, "/hello/you/") == b'{"hello": "you"}'
        assert f"http://127.0.0.1:{port}/hello/you/" in output.read_text()


def test_second_make_run_keeps_what_the_user_changed(clone: Path) -> None:
    views = clone / "build" / "my-async-service" / "home" / "views.py"
    views.write_text(views.read_text().replace('{"hello": name}', '{"mine": name}'))
    port = free_port()
    with make_run(clone, port) as output:
        assert get(port, "/hello/you/") == b'{"mine": "you"}'
        assert "Generating" not in output.read_text()


def test_make_run_refuses_a_port_in_use_in_one_sentence(clone: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = subprocess.run(
            ["make", "run", f"PORT={port}"],
            cwd=clone,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode
    [sentence] = [line for line in done.stderr.splitlines() if "in use" in line]
    assert sentence.startswith(
        f"CommandError: Port {port} on 127.0.0.1 is in use: stop"
    )
    assert "Traceback" not in done.stderr
