"""A generated service, and what its owner does with it."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from tests.template import interpreters

TEMPLATE = Path(__file__).parent.parent.parent
TREE = TEMPLATE / "{{cookiecutter.project_slug}}"
ONLOOP = TREE / "vendor" / "onloop"
# The variables of a shell on a new machine: no virtual environment, no settings.
INHERITED = (
    *("PATH", "HOME", "LANG", "UV_CACHE_DIR"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "UV_SYSTEM_CERTS"),
)
Line = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: str


@dataclass(frozen=True)
class Service:
    path: Path
    answers: dict[str, str]
    # Which versions uv installs, of those that pyproject.toml allows.
    resolution: str = "highest"

    @property
    def environment(self) -> dict[str, str]:
        minimum = oldest_python(self.answers["django_version"])
        return inherited() | {
            "PATH": f"{interpreters.uv_folder()}{os.pathsep}{system_path()}",
            # The oldest Python that it supports, or the newest that is installed.
            "UV_PYTHON": interpreters.find(minimum, self.answers["admin"] == "true"),
            "UV_RESOLUTION": self.resolution,
            # Or `uv run` would make another service's environment that of this one.
            **({"UV_NO_SYNC": "1"} if (self.path / ".venv").is_symlink() else {}),
        }

    def copy(self, path: Path) -> "Service":
        """A copy in another folder, as it was generated."""
        for file in self.files():
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.path / file, path / file)
        return replace(self, path=path)

    def copy_in_environment(
        self, path: Path, other: "Service | None" = None
    ) -> "Service":
        """A copy as it was generated, which uses the environment of this service, or of
        another with the same dependencies.
        """
        copy = self.copy(path)
        (path / ".venv").symlink_to((other or self).path / ".venv")
        return copy

    def replace(self, file: str, before: str, after: str) -> None:
        """Replace text that occurs exactly once in a file."""
        text = (self.path / file).read_text(encoding="utf-8")
        assert text.count(before) == 1, f"{before!r} in {file}"
        (self.path / file).write_text(text.replace(before, after), encoding="utf-8")

    def files(self) -> set[str]:
        """The generated files, without those that running it adds or git ignores."""
        made = re.compile(
            r"\.venv/|uv\.lock$|(.*/)?(__pycache__|\.\w+_cache)/"
            r"|staticfiles/|media/|\.postgresql/|.*\.sqlite3"
        )
        paths = (path for path in self.path.rglob("*") if path.is_file())
        names = {path.relative_to(self.path).as_posix() for path in paths}
        return {name for name in names if not made.match(name)}

    def readme_commands(self) -> list[str]:
        text = (self.path / "README.md").read_text(encoding="utf-8")
        return re.findall(r"^    (uv run .*)$", text, re.MULTILINE)

    def documents(self) -> dict[str, str]:
        """README.md and docs/, by path."""
        paths = [self.path / "README.md", *sorted((self.path / "docs").iterdir())]
        return {
            path.relative_to(self.path).as_posix(): path.read_text(encoding="utf-8")
            for path in paths
        }

    def python_examples(self) -> list[str]:
        text = "\n".join(self.documents().values())
        return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)

    def readme_environment(self) -> dict[str, str]:
        """The environment of production."""
        text = (self.path / "README.md").read_text(encoding="utf-8")
        return dict(re.findall(r"^    ([A-Z_]+)=(.*)$", text, re.MULTILINE))

    def run(self, command: str, **environment: str) -> str:
        return succeed(shlex.split(command), self.path, self.environment | environment)

    def sync(self) -> None:
        """`uv sync`, from uv's cache if everything is in it."""
        if self.resolution == "highest":
            ask_index(self.answers["django_version"])
        else:
            # Offline, the lowest versions would be those that are in the cache.
            self.run("uv lock")
        from_cache = ["uv", "sync", "--offline"]
        if finish(from_cache, self.path, self.environment).returncode:
            self.run("uv sync")

    @contextmanager
    def serve(self, command: str, **environment: str) -> Iterator["Server"]:
        """Run the command on a free port, and end it with SIGTERM."""
        port = free_port()
        arguments = shlex.split(re.sub(r"\b8000\b", str(port), command))
        with self.start(arguments, port, self.environment | environment) as server:
            yield server

    def serve_module(
        self, module: str, **environment: str
    ) -> AbstractContextManager["Server"]:
        """Serve the application of a module with production settings."""
        command = f"uv run --no-sync python -W error -m uvicorn {module}:application"
        production = {
            "SECRET_KEY": "abcdefghij" * 5,
            "ALLOWED_HOSTS": "127.0.0.1",
            "DEBUG": "",
        }
        return self.serve(
            f"{command} --port 8000 --timeout-graceful-shutdown 1",
            **production | environment,
        )

    @contextmanager
    def start(
        self, command: list[str], port: int, environment: dict[str, str]
    ) -> Iterator["Server"]:
        log = self.path.parent / f"{port}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=self.path,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # uv passes signals on to its child; the group is the last resort.
                start_new_session=True,
            )
        server = Server(port, log, process)
        try:
            server.wait_for(server.listens)
            yield server
            process.send_signal(signal.SIGTERM)
            process.wait(15)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@dataclass(frozen=True)
class Server:
    port: int
    log: Path
    process: subprocess.Popen[bytes]

    def get(self, path: str, **headers: str) -> Answer:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            fields = {name.lower(): value for name, value in response.getheaders()}
            body = response.read().decode(errors="replace")
            return Answer(response.status, fields, body)
        finally:
            connection.close()

    def listens(self) -> bool:
        status = self.process.poll()
        assert status is None, f"it ended with {status}:\n{self.log.read_text()}"
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def wait_for(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text(encoding="utf-8")
            time.sleep(0.02)

    def lines(self, log_format: str) -> list[Line]:
        text = self.log.read_text(encoding="utf-8")
        return [PARSERS[log_format](line) for line in text.splitlines()]


@dataclass(frozen=True)
class Site:
    """How a service is served in development or production."""

    service: Service
    server: Server
    is_production: bool
    # Whether Server-Timing is sent.
    server_timing: bool = True

    @property
    def origin(self) -> str:
        if self.is_production:
            return "https://example.com"
        return f"http://127.0.0.1:{self.server.port}"

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a proxy that terminates TLS."""
        if not self.is_production:
            return {}
        return {"Host": "example.com", "X-Forwarded-Proto": "https"}


@cache
def ask_index(django_version: str) -> None:
    """Have uv ask for the newest versions of what any service on this Django needs.

    Once, and not for each service, because not every index lets uv keep the answers. A
    service gets these versions as long as no optional dependency holds another back.
    """
    text = (TREE / "pyproject.toml").read_text(encoding="utf-8")
    text = re.sub(r"(?m)^ *# %.*\n", "", text).replace("vendor/onloop", str(ONLOOP))
    oldest = oldest_python(django_version)
    values = {
        "project_slug": "all",
        "django_version": django_version,
        "__python": oldest,
    }
    for name, value in values.items():
        text = text.replace(f"{{{{ cookiecutter.{name} }}}}", value)
    lock = [interpreters.UV, "lock", "--python", interpreters.find(oldest)]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "pyproject.toml").write_text(text, encoding="utf-8")
        succeed(lock, Path(folder), inherited())


def oldest_python(django_version: str) -> str:
    return "3.12" if django_version == "6.1" else "3.11"


def finish(
    command: Sequence[str | Path],
    cwd: Path,
    env: dict[str, str] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run the command, with stdout and stderr in one stream."""
    return subprocess.run(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=timeout,
    )


def succeed(
    command: Sequence[str | Path], cwd: Path, env: dict[str, str] | None = None
) -> str:
    done = finish(command, cwd, env)
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


def generated_files(folder: Path) -> dict[str, bytes]:
    """All files below the folder of a new service, without the secret in .env."""
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    found[".env"], count = re.subn(rb"(?m)^(SECRET_KEY=).+", rb"\1", found[".env"])
    assert count == 1
    return found


def inherited(*more: str) -> dict[str, str]:
    names = (*INHERITED, *more)
    return {name: os.environ[name] for name in names if name in os.environ}


def system_path() -> str:
    """PATH without the virtual environment that these tests run in."""
    folders = os.environ["PATH"].split(os.pathsep)
    return os.pathsep.join(f for f in folders if not f.startswith(str(TEMPLATE)))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def parse_logfmt(line: str) -> Line:
    pair = r'([^\s="]+)=("(?:[^"\\]|\\.)*"|[^\s"=\\]+)'
    assert re.fullmatch(f"{pair}(?: {pair})*", line), line
    return {
        key: json.loads(value) if value.startswith('"') else value
        for key, value in re.findall(pair, line)
    }


def parse_text(line: str) -> Line:
    match = re.fullmatch(r"(\S+) ([A-Z]+) +([\w.]+): ([^\t]*)\t(.*)", line)
    assert match, line
    timestamp, level, logger, message, pairs = match.groups()
    head = {"timestamp": timestamp, "level": level.lower(), "logger": logger}
    return head | {"message": message} | parse_logfmt(pairs)


PARSERS: dict[str, Callable[[str], Line]] = {
    "text": parse_text,
    "logfmt": parse_logfmt,
    "json": json.loads,
}
