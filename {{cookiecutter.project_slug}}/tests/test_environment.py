import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from config import settings
from config.backends import parse_database_url
from config.environment import Environment

REFUSED = [
    ("RESPONSE_HEADER", "X-Status", "'Name: value'"),
    ("RESPONSE_HEADER", "Content-Length: 1", "server itself"),
    ("RESPONSE_HEADER_WHEN", "sometimes", "status-200, success, always, never"),
    ("REQUEST_TIMEOUT", "soon", "seconds, 0.001 or more"),
    ("SECURE_HSTS_SECONDS", "-1", "a whole number, 0 or more"),
    ("MEDIA_ROOT", "files", "an absolute path"),
]


@pytest.mark.parametrize(
    ("command", "name"),
    [("manage.py check", "DEBUG"), ("-m uvicorn config.asgi:application", "LOG_LEVEL")],
)
def test_wrong_value_stops_the_start_with_one_sentence(command: str, name: str) -> None:
    environment = {"DJANGO_SETTINGS_MODULE": "config.settings", name: "x"}
    done = subprocess.run(
        [sys.executable, *command.split()],
        check=False,
        cwd=Path(__file__).parent.parent,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert done.stderr.startswith(f"{name}='x' is refused: use ")


@pytest.mark.parametrize(("name", "value", "allowed"), REFUSED)
def test_wrong_value_names_the_variable_the_value_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, allowed: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ImproperlyConfigured, match=allowed) as caught:
        importlib.reload(settings)
    assert str(caught.value).startswith(f"{name}={value!r} is refused: ")


@pytest.mark.parametrize("line", ["LOG_FORMT=json", "LOG_FORMAT", "log_format=json"])
def test_name_in_dotenv_that_no_setting_has_is_refused(
    tmp_path: Path, line: str
) -> None:
    (tmp_path / ".env").write_text(f"{line}\n")
    env = Environment(tmp_path / ".env", {})
    env.text("LOG_FORMAT")
    with pytest.raises(ImproperlyConfigured, match=r"did you mean LOG_FORMAT=\?"):
        env.refuse_unknown()


def test_environment_outranks_dotenv_and_dotenv_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRST", "environment")
    (tmp_path / ".env").write_text("FIRST=x\nexport SECOND='a \"b\"' # comment\n")
    env = Environment(tmp_path / ".env", {"SECOND": "x", "THIRD": "default"})
    values = [env.text(name) for name in ("FIRST", "SECOND", "THIRD", "FOURTH")]
    assert values == ["environment", 'a "b"', "default", ""]
    assert "SECOND" not in os.environ


def test_database_url_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(settings.BASE_DIR / "db.sqlite3")
    assert parse_database_url("sqlite:///db.sqlite3")["NAME"] == path
    monkeypatch.setattr("config.backends.find_spec", lambda name: True)
    database = parse_database_url("postgresql://host/name?conn_max_age=60")
    assert (database["CONN_MAX_AGE"], database["CONN_HEALTH_CHECKS"]) == (60, True)
    assert database["OPTIONS"]["connect_timeout"] == 2
