"""Settings from the environment; a wrong value is refused in one sentence."""

import math
import os
import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import environ
from django.core.exceptions import ImproperlyConfigured

LOG_FORMATS = ("text", "logfmt", "json")
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
# The response statuses for which each condition holds.
CONDITIONS = {
    "status-200": range(200, 201),
    "success": range(200, 300),
    "always": range(100, 600),
    "never": range(0),
}
SERVER_TIMING = ("debug", "always", "never")

# Each thread of serving/threads.py keeps its connection, and learns at the first query
# of a request whether the server has gone since.
PERSISTENT = {"CONN_MAX_AGE": 600, "CONN_HEALTH_CHECKS": True}
# For libpq: a server that is gone without a word costs a request seconds, not the
# quarter of an hour that TCP would wait. The last is in milliseconds.
TIMEOUTS = {"connect_timeout": 2, "keepalives_idle": 10, "tcp_user_timeout": 5000}

# RFC 9110, sections 5.6.2 and 5.5, without the obsolete non-ASCII values.
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[!-~]([ \t!-~]*[!-~])?")
# They frame the message or belong to the connection: RFC 9110, 7.6.1 and 8.6.
_SERVERS_OWN = {
    *("connection", "content-length", "keep-alive", "te", "trailer"),
    *("transfer-encoding", "upgrade"),
}


def parse_header(text: str) -> tuple[str, str]:
    """Split "Name: value" (RFC 9110); raise ValueError that says what is allowed."""
    name, colon, value = text.partition(":")
    value = value.strip(" \t")
    if not colon:
        raise ValueError("it must be 'Name: value', with a colon")
    if not TOKEN.fullmatch(name):
        raise ValueError(
            "the name may hold letters, digits and !#$%&'*+-.^_`|~ only (RFC 9110)"
        )
    if name.lower() in _SERVERS_OWN:
        raise ValueError("the server itself sets this header")
    if not _HEADER_VALUE.fullmatch(value):
        raise ValueError("the value must be visible ASCII on one line, not empty")
    return name, value


class Environment:
    """An empty variable counts as unset; a variable outranks the same one in .env."""

    def __init__(self, dotenv: Path, defaults: Mapping[str, str]) -> None:
        self.base_dir = dotenv.parent
        self.defaults = defaults

        class Dotenv(environ.Env):  # type: ignore[misc]
            # Not os.environ: a reloaded process would inherit what .env said before.
            ENVIRON: dict[str, str] = {}  # noqa: RUF012

        if dotenv.is_file():
            Dotenv.read_env(dotenv)
        self.dotenv = Dotenv.ENVIRON

    def text(self, name: str) -> str:
        value = os.environ.get(name, self.dotenv.get(name, ""))
        return value or self.defaults.get(name, "")

    def required(self, name: str) -> str:
        if value := self.text(name):
            return value
        raise ImproperlyConfigured(
            f"{name} is not set: set it in the environment, or in .env "
            "(copy .env.example)."
        )

    def boolean(self, name: str) -> bool:
        """False unless it says otherwise."""
        values = {"": False, "true": True, "1": True, "false": False, "0": False}
        value = self.text(name)
        if value.lower() not in values:
            raise _refused(name, value, "use one of true, 1, false, 0")
        return values[value.lower()]

    def choice(self, name: str, allowed: Iterable[str]) -> str:
        value = self.text(name)
        if value not in allowed:
            raise _refused(name, value, f"use one of {', '.join(allowed)}")
        return value

    def items(self, name: str) -> list[str]:
        """Comma-separated."""
        return [item.strip() for item in self.text(name).split(",") if item.strip()]

    def header(self, name: str) -> str:
        value = self.text(name)
        try:
            parse_header(value)
        except ValueError as error:
            raise _refused(name, value, str(error)) from None
        return value

    def seconds(self, name: str) -> float | None:
        value = self.text(name)
        if not value:
            return None
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            allowed = "use a number of seconds above 0, or leave it unset"
            raise _refused(name, value, allowed)
        return seconds

    def integer(self, name: str) -> int:
        value = self.text(name)
        if not re.fullmatch(r"[0-9]{1,9}", value):
            raise _refused(name, value, "use a whole number, 0 or more")
        return int(value)

    def database(self, name: str) -> dict[str, Any]:
        """A relative SQLite path starts at the project, wherever the command ran.

        A query outranks what is set here: ?conn_max_age=60&connect_timeout=5.
        """
        url = self.text(name)
        scheme, separator, _ = url.partition("://")
        # Without the rest, which may hold a password.
        shown = f"{scheme}..." if separator else "..."
        allowed = "use sqlite:///db.sqlite3 or postgresql://user:password@host/name"
        if not separator or scheme not in ("sqlite", "postgres", "postgresql"):
            raise _refused(name, shown, allowed)
        if scheme != "sqlite" and not (find_spec("psycopg") or find_spec("psycopg2")):
            missing = "its driver is missing: `uv add 'psycopg[binary]'` installs it"
            raise _refused(name, shown, missing)
        try:
            config: dict[str, Any] = PERSISTENT | environ.Env.db_url_config(url)
        except ValueError:
            raise _refused(name, shown, allowed) from None
        if scheme != "sqlite":
            config["OPTIONS"] = TIMEOUTS | config.get("OPTIONS", {})
        elif config["NAME"] != ":memory:":
            config["NAME"] = str(self.base_dir / config["NAME"])
        return config


def _refused(name: str, value: str, allowed: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(f"{name}={value!r} is refused: {allowed}.")
