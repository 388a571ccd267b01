import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from onloop.logging import Formatter
from pytest_django import Settings

LogLines = Callable[[str], list[dict[str, Any]]]


@pytest.fixture
def own_middleware(settings: Settings) -> None:
    """Only the service's own middlewares, around tests/pages.py, whatever you add."""
    settings.MIDDLEWARE = [m for m in settings.MIDDLEWARE if m.startswith("serving.")]
    settings.ROOT_URLCONF = "tests.pages"


@pytest.fixture
def log_lines(caplog: pytest.LogCaptureFixture) -> Iterator[LogLines]:
    """What a logger has written since, whatever LOG_LEVEL is."""
    caplog.set_level(logging.INFO)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Formatter("json", "tests"))
    logging.getLogger().addHandler(handler)

    def log_lines(logger: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in stream.getvalue().splitlines()]
        return [line for line in lines if line["logger"] == logger]

    yield log_lines
    logging.getLogger().removeHandler(handler)
