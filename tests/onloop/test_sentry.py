"""A plain sentry_sdk.init() reports what it reports of stock Django."""

import json
import subprocess
import sys
from typing import Any

from .sentry_project import NUMBERS

EXPECTED = sorted(
    (f"user{number}", f"http://testserver/fail/{number}/", f"/fail/{number}/")
    for number in NUMBERS
)


def test_concurrent_errors_carry_their_own_user_url_and_transaction() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.onloop.sentry_project"],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    received = json.loads(done.stdout)
    assert sorted(map(told, received["event"])) == EXPECTED
    names = sorted(event["transaction"] for event in received["transaction"])
    assert names == sorted(name for _, _, name in EXPECTED)


def told(event: dict[str, Any]) -> tuple[str, str, str]:
    user, request = event.get("user", {}), event.get("request", {})
    told = user.get("username"), request.get("url"), event.get("transaction")
    return str(told[0]), str(told[1]), str(told[2])
