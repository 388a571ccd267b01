import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from django.core.exceptions import ImproperlyConfigured

from config import settings as config_settings
from serving.environment import Environment

ROOT = Path(__file__).parent.parent
MANAGE = ("manage.py", "check")
SERVE = ("-m", "uvicorn", "config.asgi:application", "--port", "0")


def read_settings() -> ModuleType:
    return importlib.reload(config_settings)


def start(command: tuple[str, ...], **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, *command],
        check=False,
        cwd=ROOT,
        env=os.environ | {"DJANGO_SETTINGS_MODULE": "config.settings"} | environment,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("command", "name", "value", "expected"),
    [
        (MANAGE, "SECRET_KEY", "", "SECRET_KEY is not set"),
        (SERVE, "LOG_FORMAT", "xml", "LOG_FORMAT='xml' is refused: use one of text"),
    ],
    ids=["manage.py", "uvicorn"],
)
def test_wrong_variable_stops_the_start_with_one_sentence(
    command: tuple[str, ...], name: str, value: str, expected: str
) -> None:
    status, stderr = start(command, **{name: value})
    assert status == 1
    assert stderr.startswith(expected)
    assert len(stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("DEBUG", "maybe", "true, 1, false, 0"),
        ("LOG_LEVEL", "LOUD", "DEBUG, INFO"),
        ("RESPONSE_HEADER", "X-Status", "'Name: value'"),
        ("RESPONSE_HEADER_WHEN", "sometimes", "status-200, success, always, never"),
        ("SERVER_TIMING", "yes", "debug, always, never"),
        ("REQUEST_TIMEOUT", "soon", "a number of seconds above 0"),
        ("REQUEST_TIMEOUT", "-1", "a number of seconds above 0"),
        ("REQUEST_TIMEOUT", "nan", "a number of seconds above 0"),
        ("SECURE_HSTS_SECONDS", "-1", "a whole number, 0 or more"),
    ],
)
def test_wrong_value_names_the_variable_the_value_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, allowed: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ImproperlyConfigured) as caught:
        read_settings()
    assert str(caught.value).startswith(f"{name}={value!r} is refused: ")
    assert allowed in str(caught.value)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.environment.find_spec", lambda name: True)


def test_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.environment.find_spec", lambda name: None)
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:hunter2@host/name")
    with pytest.raises(ImproperlyConfigured, match="uv add 'psycopg") as caught:
        read_settings()
    assert "hunter2" not in str(caught.value)


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mongodb://me:hunter2@host/name", "mongodb..."),
        ("me:hunter2@host/name", "..."),
        ("postgresql://me:hunter2@host:port/name", "postgresql..."),
    ],
)
def test_password_of_a_refused_database_url_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, url: str, shown: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    with pytest.raises(ImproperlyConfigured) as caught:
        read_settings()
    assert f"DATABASE_URL={shown!r} is refused" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_values_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBUG", "True")
    monkeypatch.setenv("ALLOWED_HOSTS", "a.example, b.example,")
    monkeypatch.setenv("REQUEST_TIMEOUT", "2.5")
    settings = read_settings()
    assert settings.DEBUG is True
    assert settings.ALLOWED_HOSTS == ["a.example", "b.example"]
    assert settings.REQUEST_TIMEOUT == 2.5


def test_environment_outranks_the_dotenv_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRST", "environment")
    monkeypatch.delenv("SECOND", raising=False)
    dotenv = tmp_path / ".env"
    dotenv.write_text("FIRST=dotenv\nSECOND=X-Status: 'a' # b\n")
    env = Environment(dotenv, {})
    assert env.required("FIRST") == "environment"
    assert env.required("SECOND") == "X-Status: 'a' # b"
    # A reloaded process reads the file anew.
    assert "SECOND" not in os.environ


def test_relative_sqlite_path_starts_at_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite:///db.sqlite3")
    database = Environment(tmp_path / ".env", {}).database("DATABASE_URL")
    assert database["NAME"] == str(tmp_path / "db.sqlite3")


@pytest.mark.usefixtures("driver")
def test_query_of_the_database_url_outranks_the_connection_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = Environment(tmp_path / ".env", {})
    monkeypatch.setenv("DATABASE_URL", "postgresql://host/name")
    database = env.database("DATABASE_URL")
    assert (database["CONN_MAX_AGE"], database["CONN_HEALTH_CHECKS"]) == (600, True)
    assert database["OPTIONS"]["connect_timeout"] == 2
    query = "?conn_max_age=60&connect_timeout=5"
    monkeypatch.setenv("DATABASE_URL", f"postgresql://host/name{query}")
    database = env.database("DATABASE_URL")
    assert database["CONN_MAX_AGE"] == 60
    assert database["OPTIONS"]["connect_timeout"] == 5
