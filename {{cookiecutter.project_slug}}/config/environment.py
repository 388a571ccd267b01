"""Settings from the environment; a wrong value is refused in one sentence."""

import os
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dj_database_url import parse
from django.core.exceptions import ImproperlyConfigured
from dotenv import dotenv_values

from serving.header import parse_header

# For libpq: a server that is gone without a word costs a request seconds, not the
# quarter of an hour that TCP would wait. The last is in milliseconds.
TIMEOUTS = {"connect_timeout": 2, "keepalives_idle": 10, "tcp_user_timeout": 5000}
# In the query of a database URL these are for Django, all others for the driver.
FOR_DJANGO = {"conn_health_checks", "conn_max_age", "disable_server_side_cursors"}


class Environment:
    """An empty variable counts as unset; a variable outranks the same one in .env."""

    def __init__(self, dotenv: Path, defaults: Mapping[str, str]) -> None:
        self.base_dir = dotenv.parent
        # Not into os.environ: a reloaded process would inherit what .env said before.
        self.dotenv = dotenv_values(dotenv, encoding="utf-8")
        self.defaults = defaults
        self.known: set[str] = set()

    def text(self, name: str) -> str:
        self.known.add(name)
        value = os.environ.get(name, self.dotenv.get(name))
        return value or self.defaults.get(name, "")

    def required(self, name: str) -> str:
        if value := self.text(name):
            return value
        where = "set it in the environment, or in .env (copy .env.example)"
        raise ImproperlyConfigured(f"{name} is not set: {where}.")

    def matching(self, name: str, pattern: str, allowed: str) -> str:
        value = self.text(name)
        if not re.fullmatch(pattern, value):
            raise refused(name, value, allowed)
        return value

    def boolean(self, name: str) -> bool:
        value = self.matching(name, "|(?i:true|1|false|0)", "use true or false")
        return value.lower() in ("true", "1")

    def integer(self, name: str) -> int:
        return int(self.matching(name, "[0-9]{1,9}", "use a whole number, 0 or more"))

    def seconds(self, name: str) -> float | None:
        allowed = "use a number of seconds above 0, or leave it unset"
        value = self.matching(name, r"|(?=.*[1-9])[0-9]{0,9}\.?[0-9]{1,9}", allowed)
        return float(value) if value else None

    def choice(self, name: str, allowed: Iterable[str]) -> str:
        pattern = "|".join(map(re.escape, allowed))
        return self.matching(name, pattern, f"use one of {', '.join(allowed)}")

    def items(self, name: str) -> list[str]:
        return [item.strip() for item in self.text(name).split(",") if item.strip()]

    def header(self, name: str) -> str:
        value = self.text(name)
        try:
            parse_header(value)
        except ValueError as error:
            raise refused(name, value, str(error)) from None
        return value

    def database(self, name: str) -> dict[str, Any]:
        """A relative SQLite path starts at the project, wherever the command ran, and a
        query outranks what is set here: ?conn_max_age=60&connect_timeout=5.
        """
        url = self.text(name)
        scheme, separator, _ = url.partition("://")
        # Without the rest, which may hold a password.
        shown = f"{scheme}..." if separator else "..."
        try:
            if scheme not in ("sqlite", "postgres", "postgresql"):
                raise ValueError
            # Its thread keeps a connection, and tests it before a request uses it.
            config: Any = parse(url, conn_max_age=600, conn_health_checks=True)
        except ValueError:
            allowed = "use sqlite:///db.sqlite3 or postgresql://user:password@host/name"
            raise refused(name, shown, allowed) from None
        if scheme != "sqlite" and not (find_spec("psycopg") or find_spec("psycopg2")):
            raise refused(name, shown, "install its driver: `uv add 'psycopg[binary]'`")
        options = config.setdefault("OPTIONS", {})
        for option in FOR_DJANGO & options.keys():
            value = options.pop(option)
            config[option.upper()] = None if value == "None" else value
        if scheme != "sqlite":
            config["OPTIONS"] = TIMEOUTS | options
        elif config["NAME"] != ":memory:":
            config["NAME"] = str(self.base_dir / config["NAME"])
        return dict(config)

    def refuse_unknown(self, also: Iterable[str] = ()) -> None:
        """Refuse a name in .env that nobody has asked for: it is a typing error."""
        known = self.known.union(also)
        for name, value in self.dotenv.items():
            if name in known and value is not None:
                continue
            # Nothing that may be part of a secret.
            shown = name if name.isupper() else "A name"
            near = get_close_matches(name.upper(), known, 1)
            hint = f"did you mean {near[0]}=?" if near else "no setting has this name."
            raise ImproperlyConfigured(f"{shown} in .env is refused: {hint}")


def refused(name: str, value: str, allowed: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(f"{name}={value!r} is refused: {allowed}.")
