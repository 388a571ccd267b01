import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from serving import logs

pytest_plugins = [
    # Blocking calls on the event loop fail the tests.
    "tests.blocking",
    "tests.server",
    # % if cookiecutter.database == "postgresql"
    "tests.postgresql",
    # % endif
]
Line = dict[str, Any]


@pytest.fixture
def log_lines() -> Iterator[Callable[[], list[Line]]]:
    """The lines that any logger has written since, parsed from LOG_FORMAT=json."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.Formatter("json", "tests"))
    logging.getLogger().addHandler(handler)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logging.getLogger().removeHandler(handler)
