"""Importing, installing and serving onloop changes nothing in Django."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RECORD_CHANGES = Path(__file__).parent / "record_changes.py"
pytestmark = pytest.mark.xdist_group("nothing patched")


def record_changes(mode: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, RECORD_CHANGES, mode],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


@pytest.fixture(scope="module")
def stock() -> dict[str, Any]:
    return record_changes("stock")


@pytest.fixture(scope="module")
def installed() -> dict[str, Any]:
    return record_changes("installed")


@pytest.fixture(scope="module")
def onloop() -> dict[str, Any]:
    return record_changes("onloop")


def test_changes_are_recorded(stock: dict[str, Any]) -> None:
    # Django's own check framework adds it to the function when the app is loaded.
    assert "django.contrib.auth.checks.check_user_model.tags" in stock["changes"]


def test_serving_changes_no_more_than_djangos_handler_does(
    stock: dict[str, Any], onloop: dict[str, Any]
) -> None:
    assert onloop["handler"] == "onloop.handler.ASGIHandler"
    assert set(onloop["changes"]) <= set(stock["changes"])


def test_installing_changes_no_more_than_django_does(
    stock: dict[str, Any], installed: dict[str, Any]
) -> None:
    assert set(installed["changes"]) <= set(stock["changes"])


@pytest.mark.parametrize("mode", ["installed", "onloop"])
def test_signal_handlers_stay_as_they_are(
    request: pytest.FixtureRequest, stock: dict[str, Any], mode: str
) -> None:
    seen = request.getfixturevalue(mode)
    assert seen["signals after"] == seen["signals before"]
    assert seen["signals in a view"] == stock["signals in a view"]
    assert "Server.handle_exit" in seen["signals in a view"]


def test_line_in_asgi_py_decides_alone(
    stock: dict[str, Any], installed: dict[str, Any], onloop: dict[str, Any]
) -> None:
    assert installed["handler"] == "django.core.handlers.asgi.ASGIHandler"
    assert installed["thread hops"] == stock["thread hops"] > 10
    assert onloop["thread hops"] == 0
