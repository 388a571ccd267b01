"""The contenders, and the environment in which each one runs."""

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from cookiecutter.exceptions import CookiecutterException
from cookiecutter.main import cookiecutter

from tests.template import interpreters

HERE = Path(__file__).resolve().parent
TEMPLATE = HERE.parent
WORK = TEMPLATE / "build" / "bench"
SQLITE = WORK / "items.sqlite3"
HOST = "127.0.0.1"

Database = Literal["sqlite", "postgresql"]


class Refused(Exception):
    """A contender cannot be measured, or gave an answer that does not count."""


@dataclass(frozen=True)
class Contender:
    name: str
    title: str
    application: str
    requirements: tuple[str, ...] = ()
    settings: str = ""
    django: str = ""
    admin: bool = False
    # With all of its middleware, or with none, and so without log line and header.
    chain: Literal["all", "none"] = "all"

    @property
    def generated(self) -> bool:
        return self.name.startswith("service")


@dataclass(frozen=True)
class Environment:
    """The folder and the variables with which a contender's server is started."""

    python: Path
    folder: Path
    variables: dict[str, str] = field(default_factory=dict)


def contenders() -> Iterator[Contender]:
    server = ("uvicorn", "uvloop", "httptools", "websockets")
    yield Contender("asgi", "raw ASGI", "raw_asgi:app", server)
    yield Contender(
        "starlette",
        "Starlette, pure ASGI middleware",
        "starlette_asgi:app",
        (*server, "starlette"),
    )
    fastapi = (*server, "fastapi", "sqlalchemy[asyncio]", "aiosqlite", "asyncpg")
    yield Contender(
        "fastapi", "FastAPI, documented middleware", "fastapi_http:app", fastapi
    )
    yield Contender(
        "fastapi-sqlalchemy",
        "FastAPI, async SQLAlchemy",
        "fastapi_sqlalchemy:app",
        fastapi,
    )
    for django in ("5.2", "6.1"):
        stock = (*server, f"Django~={django}.0", "psycopg[binary]")
        yield Contender(
            f"startproject-{django}",
            f"startproject, Django {django}",
            "config.asgi:application",
            stock,
            settings="startproject_settings",
            django=django,
        )
        if django == "5.2":
            bolt = Contender(
                f"bolt-{django}",
                f"django-bolt, Django's middleware, Django {django}",
                "runbolt",
                (f"Django~={django}.0", "psycopg[binary]", "django-bolt"),
                settings="bolt_settings",
                django=django,
            )
            yield bolt
            yield replace(
                bolt,
                name=f"bolt-{django}-native",
                title="django-bolt without middleware and log line",
                chain="none",
            )
            yield Contender(
                f"structlog-{django}",
                f"startproject + django-structlog, Django {django}",
                "config.asgi:application",
                (*stock, "django-structlog"),
                settings="structlog_settings",
                django=django,
            )
        for admin in (True, False):
            yield Contender(
                f"service-{django}" + "-admin" * admin,
                f"this template, admin {'on' if admin else 'off'}, Django {django}",
                "config.asgi:application",
                settings="service_settings",
                django=django,
                admin=admin,
            )


def find_python() -> Path:
    """The interpreter for all: 3.12 or newer, which Django 6.1 requires."""
    try:
        return Path(interpreters.find("3.12"))
    except LookupError as error:
        print(f"Django 6.1 is left out. {error}")
        return Path(sys.executable)


def _output(*command: str) -> str:
    """The command's output; empty if it fails or does not exist."""
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=60
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


class Workshop:
    """Builds each environment once."""

    def __init__(self, interpreter: Path) -> None:
        self.interpreter = interpreter
        self.version = _output(
            str(interpreter), "-c", "import platform as p; print(p.python_version())"
        )
        self.built: dict[str, Environment | Refused] = {}

    def environment(self, contender: Contender, database: Database) -> Environment:
        name = contender.name
        if contender.generated:
            name += f"-{database}"
        if name not in self.built:
            print(f"building {name}", flush=True)
            try:
                self.built[name] = self._build(name, contender, database)
            except Refused as reason:
                self.built[name] = reason
        found = self.built[name]
        if isinstance(found, Refused):
            raise found
        return found

    def _build(
        self, name: str, contender: Contender, database: Database
    ) -> Environment:
        project = WORK / "projects" / name
        if contender.django == "6.1" and self.version.startswith("3.11."):
            raise Refused("Django 6.1 needs Python 3.12 or newer")
        shutil.rmtree(project, ignore_errors=True)
        project.mkdir(parents=True)
        if contender.generated:
            project = self._bake(contender, database, project)
            python = self._venv(name, contender, project)
        else:
            python = self._venv(name, contender)
            if contender.django:
                _run(str(python), "-m", "django", "startproject", "config", project)
        return Environment(python, project, self._variables(contender))

    def _variables(self, contender: Contender) -> dict[str, str]:
        variables = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": os.environ.get("HOME", ""),
            "PYTHONPATH": str(HERE / "contenders"),
            "PYTHONPYCACHEPREFIX": str(WORK / "pycache"),
            "BENCH_SQLITE": str(SQLITE),
        }
        if contender.settings:
            variables["DJANGO_SETTINGS_MODULE"] = contender.settings
        if contender.generated:
            variables |= {
                "SECRET_KEY": secrets.token_urlsafe(50),
                "DEBUG": "false",
                "ALLOWED_HOSTS": "127.0.0.1",
            }
        return variables

    def _bake(self, contender: Contender, database: Database, into: Path) -> Path:
        if not (TEMPLATE / "cookiecutter.json").exists():
            raise Refused("the template has no cookiecutter.json")
        answers = {
            "django_version": contender.django,
            "admin": contender.admin,
            "database": database,
            "log_format": "json",
            "deploy": "none",
            "ci": "none",
        }
        try:
            project = cookiecutter(
                str(TEMPLATE),
                no_input=True,
                default_config=True,
                extra_context=answers,
                output_dir=str(into),
            )
        except CookiecutterException as error:
            raise Refused(f"the template does not bake: {error}") from error
        return Path(project)

    def _venv(
        self, name: str, contender: Contender, project: Path | None = None
    ) -> Path:
        venv = WORK / "venvs" / name
        python = venv / "bin" / "python"
        stamp = venv / "requirements.txt"
        source: list[str | Path] = [*contender.requirements]
        requirements = "\n".join(contender.requirements)
        if project:
            source += ["-r", project / "pyproject.toml"]
            requirements += (project / "pyproject.toml").read_text()
        wanted = f"# Python {self.version}\n{requirements}\n"
        made = stamp.exists() and stamp.read_text() == wanted
        if made and not project:
            return python
        if not made:
            _run(interpreters.UV, "venv", "--clear", "--python", self.interpreter, venv)
        # A service's environment is rebuilt: its vendor/onloop may have changed.
        _run(interpreters.UV, "pip", "install", "--python", python, *source)
        # Written last, so that an interrupted installation is repeated.
        stamp.write_text(wanted)
        return python

    def versions(self, environment: Environment) -> dict[str, str]:
        listed = _output(
            interpreters.UV,
            "pip",
            "list",
            "--format=json",
            f"--python={environment.python}",
        )
        packages = json.loads(listed or "[]")
        return {package["name"].lower(): package["version"] for package in packages}


def _run(*command: str | Path) -> None:
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=600
    )
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise Refused(f"`{Path(command[0]).name} {command[1]}` failed: {last}")
