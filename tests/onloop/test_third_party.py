"""Widely used third-party middleware, as published on the package index."""

import json
import subprocess
import sys
from typing import Any

import pytest

# The middleware, its thread hops for a request, how it runs and its check messages.
# Only a measurement shows the hops of middleware that calls sync_to_async() itself.
THIRD_PARTY: dict[str, tuple[int, str, str | None]] = {
    "allauth.account.middleware.AccountMiddleware": (0, "on the loop", None),
    "auditlog.middleware.AuditlogMiddleware": (2, "in a thread", "W001"),
    "axes.middleware.AxesMiddleware": (0, "on the loop", None),
    "corsheaders.middleware.CorsMiddleware": (0, "on the loop", None),
    "crum.CurrentRequestUserMiddleware": (2, "in a thread", "W001"),
    "csp.middleware.CSPMiddleware": (2, "in a thread", "W002"),
    "debug_toolbar.middleware.DebugToolbarMiddleware": (1, "on the loop", None),
    "django_htmx.middleware.HtmxMiddleware": (0, "on the loop", None),
    "django_permissions_policy.PermissionsPolicyMiddleware": (0, "on the loop", None),
    "django_ratelimit.middleware.RatelimitMiddleware": (2, "in a thread", "W001"),
    "django_structlog.middlewares.RequestMiddleware": (2, "on the loop", None),
    "maintenance_mode.middleware.MaintenanceModeMiddleware": (2, "in a thread", "W001"),
    "request_id.middleware.RequestIdMiddleware": (2, "in a thread", "W001"),
    "servestatic.middleware.ServeStaticMiddleware": (0, "on the loop", None),
    "simple_history.middleware.HistoryRequestMiddleware": (0, "on the loop", None),
    "waffle.middleware.WaffleMiddleware": (1, "in a thread", "W002"),
    "whitenoise.middleware.WhiteNoiseMiddleware": (2, "in a thread", "W001"),
}


@pytest.fixture(scope="module")
def found() -> dict[str, list[dict[str, Any]]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.onloop.third_party_project", *THIRD_PARTY],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("place", [0, 1, 2], ids=["outer", "amid", "inner"])
@pytest.mark.parametrize("path", THIRD_PARTY)
def test_hops_are_measured_for_the_middleware_that_makes_them(
    found: dict[str, list[dict[str, Any]]], path: str, place: int
) -> None:
    hops, execution, _ = THIRD_PARTY[path]
    one = found[path][place]
    assert (one["status"], one["execution"]) == (200, execution)
    assert one["hops"] == [path] * hops


@pytest.mark.parametrize("path", THIRD_PARTY)
def test_checks_find_no_error_and_one_warning_at_most(
    found: dict[str, list[dict[str, Any]]], path: str
) -> None:
    id = THIRD_PARTY[path][2]
    for one in found[path]:
        assert [check for check, _ in one["checks"]] == ([f"onloop.{id}"] if id else [])
        assert all(f"'{path}'" in message for _, message in one["checks"])


@pytest.mark.parametrize("order", ["all", "reversed"])
def test_all_of_them_together(
    found: dict[str, list[dict[str, Any]]], order: str
) -> None:
    [together] = found[order]
    assert together["status"] == 200
    # Middleware outside of a synchronous one shares its thread.
    hopping = {path for path, (hops, _, _) in THIRD_PARTY.items() if hops}
    assert set(together["hops"]) <= hopping
    assert not [id for id, _ in together["checks"] if not id.startswith("onloop.W")]
