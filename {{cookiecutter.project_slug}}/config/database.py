"""What DATABASE_URL may say."""

import re
from importlib import import_module
from typing import Any

from dj_database_url import parse

# A database must be named. An @ in the query would be part of a password.
URL = r"(sqlite://(/|:m)[^?]+|postgres(ql)?://[^/?]*/([^?]+|(?=\?service)))(\?[^@]*)?"
# In the query for Django, for its backends, and otherwise for the driver.
FOR_DJANGO = {"conn_health_checks", "conn_max_age", "disable_server_side_cursors"}
FOR_BACKEND = {"assume_role", "init_command", "isolation_level", "server_side_binding"}
FOR_BACKEND |= {"gssencmode", "host", "hostaddr", "port", "transaction_mode", "user"}
# A server that is gone without a word costs a request seconds, not the quarter of an
# hour that TCP would wait. The last is in milliseconds.
TIMEOUTS = {"connect_timeout": 2, "keepalives_idle": 10, "tcp_user_timeout": 5000}
NOWHERE = {"host": "/dev/null", "dbname": "x", "user": "x", "autocommit": True}


def parse_database_url(url: str) -> dict[str, Any]:
    """Make an entry of DATABASES; raise ValueError that says what is allowed."""
    try:
        if not re.fullmatch(URL, url):
            raise ValueError
        # Its thread keeps a connection, and tests it before a request uses it.
        config: Any = parse(url, conn_max_age=600, conn_health_checks=True)
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
            raise ValueError(f"drop {option}, or use a value that the driver takes")
    return {**config, "OPTIONS": options}


def driver_takes(is_sqlite: bool, option: dict[str, Any]) -> bool:
    """Ask the driver for a database that is not there, and look at its reason."""
    try:
        driver = import_module("sqlite3" if is_sqlite else "psycopg")
        nowhere = {"database": "/dev/null/x"} if is_sqlite else NOWHERE
        return driver.connect(**nowhere, **option) is not None
    except ImportError:
        return True
    except (TypeError, driver.Error) as error:
        return bool(re.search("/dev/null|unable to open", str(error)))
