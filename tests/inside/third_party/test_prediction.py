"""What `manage.py middleware` predicts is what real middlewares do."""

import asyncio
import json
from io import StringIO
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.checks import run_checks
from django.core.management import call_command
from serving import inline
from serving.handler import Handler
from tests.test_hops import Count, count, get  # noqa: F401

pytest_plugins = ["tests.blocking"]

# The middleware, the hops of a request, and how it runs.
THIRD_PARTY = {
    "allauth.account.middleware.AccountMiddleware": (0, "on the loop"),
    "auditlog.middleware.AuditlogMiddleware": (1, "in a thread"),
    "axes.middleware.AxesMiddleware": (0, "on the loop"),
    "corsheaders.middleware.CorsMiddleware": (0, "on the loop"),
    "crum.CurrentRequestUserMiddleware": (1, "in a thread"),
    "csp.middleware.CSPMiddleware": (2, "in a thread"),
    "debug_toolbar.middleware.DebugToolbarMiddleware": (1, "in a thread"),
    "django_htmx.middleware.HtmxMiddleware": (0, "on the loop"),
    "django_permissions_policy.PermissionsPolicyMiddleware": (0, "on the loop"),
    "django_ratelimit.middleware.RatelimitMiddleware": (1, "in a thread"),
    "django_structlog.middlewares.RequestMiddleware": (2, "in a thread"),
    "maintenance_mode.middleware.MaintenanceModeMiddleware": (1, "in a thread"),
    "request_id.middleware.RequestIdMiddleware": (1, "in a thread"),
    "servestatic.middleware.ServeStaticMiddleware": (0, "on the loop"),
    "simple_history.middleware.HistoryRequestMiddleware": (0, "on the loop"),
    "waffle.middleware.WaffleMiddleware": (1, "in a thread"),
    "whitenoise.middleware.WhiteNoiseMiddleware": (1, "in a thread"),
}
# Django's own that no service has to begin with.
DJANGOS = [
    "django.contrib.auth.middleware.RemoteUserMiddleware",
    "django.contrib.flatpages.middleware.FlatpageFallbackMiddleware",
    "django.middleware.cache.FetchFromCacheMiddleware",
    "django.middleware.cache.UpdateCacheMiddleware",
    "django.middleware.gzip.GZipMiddleware",
    "django.middleware.http.ConditionalGetMiddleware",
    "django.middleware.locale.LocaleMiddleware",
]
CHAIN = [path for path in django_settings.MIDDLEWARE if path not in THIRD_PARTY]


async def predicted() -> dict[str, Any]:
    out = StringIO()
    await asyncio.to_thread(call_command, "middleware", "--json", stdout=out)
    data: dict[str, Any] = json.loads(out.getvalue())
    return data


async def measured(count: Count) -> int:  # noqa: F811
    handler = Handler()
    # The first reads what is kept.
    assert await get(handler, "/hello/you/") == 200
    count.hops = 0
    assert await get(handler, "/hello/you/") == 200
    await handler.threads.shutdown()
    return count.hops


@pytest.mark.parametrize("place", [0, 5, len(CHAIN)], ids=["outer", "amid", "inner"])
@pytest.mark.parametrize("path", THIRD_PARTY)
async def test_third_party_middleware(
    settings: Any,
    count: Count,  # noqa: F811
    path: str,
    place: int,
) -> None:
    settings.MIDDLEWARE = [*CHAIN[:place], path, *CHAIN[place:]]
    prediction = await predicted()
    assert prediction["hops"] == await measured(count) == THIRD_PARTY[path][0]
    assert prediction["middleware"][place]["runs"] == THIRD_PARTY[path][1]


async def test_all_of_them_together(
    settings: Any,
    count: Count,  # noqa: F811
) -> None:
    settings.MIDDLEWARE = [*CHAIN, *THIRD_PARTY]
    assert (await predicted())["hops"] == await measured(count)
    settings.MIDDLEWARE = [*CHAIN, *sorted(THIRD_PARTY, key=THIRD_PARTY.__getitem__)]
    assert (await predicted())["hops"] == await measured(count)


@pytest.mark.parametrize("path", THIRD_PARTY)
def test_checks_warn_of_what_hops_and_find_no_error(settings: Any, path: str) -> None:
    settings.MIDDLEWARE = [*CHAIN, path]
    messages = run_checks(tags=["serving"])
    assert len(messages) == (THIRD_PARTY[path][0] > 0)
    for message in messages:
        assert message.id in ("serving.W001", "serving.W002")
        assert path in message.msg


@pytest.mark.parametrize("path", DJANGOS)
async def test_other_middleware_of_django(
    settings: Any,
    count: Count,  # noqa: F811
    path: str,
) -> None:
    settings.MIDDLEWARE = [*CHAIN, path]
    inline.install()
    assert (await predicted())["hops"] == await measured(count)


async def test_locale_with_one_language(
    settings: Any,
    count: Count,  # noqa: F811
) -> None:
    settings.LANGUAGES = [("en", "English")]
    settings.LANGUAGE_CODE = "en"
    settings.MIDDLEWARE = [*CHAIN, "django.middleware.locale.LocaleMiddleware"]
    inline.install()
    assert (await predicted())["hops"] == await measured(count) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"CSRF_USE_SESSIONS": True},
        {"PREPEND_WWW": False, "APPEND_SLASH": False},
        {"SESSION_ENGINE": "django.contrib.sessions.backends.file"},
        {"SESSION_ENGINE": "django.contrib.sessions.backends.cache"},
        {"MESSAGE_STORAGE": "third_party.storage.Storage"},
    ],
    ids=str,
)
async def test_settings_that_send_djangos_own_to_a_thread(
    settings: Any,
    count: Count,  # noqa: F811
    change: dict[str, Any],
) -> None:
    for name, value in change.items():
        setattr(settings, name, value)
    settings.MIDDLEWARE = CHAIN
    assert (await predicted())["hops"] == await measured(count)
