"""Promises of a service that its owner need not test; a test adds this file to it."""

import importlib
import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest
import structlog
from asgiref.sync import sync_to_async
from config import settings as config_settings
from config.backends import parse_cache_url, parse_database_url, parse_email_url
from config.environment import Environment
from django.core.exceptions import ImproperlyConfigured
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import connection
from django.db.backends.signals import connection_created
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client
from django.urls import path
from onloop.server_timing import watch_connection
from tests.conftest import LogLines

ROOT = Path(__file__).parent.parent


@sync_to_async
def query() -> None:
    # A new connection, as in a server whose threads have none yet.
    new = connection.copy()
    with new.cursor() as cursor:
        cursor.execute("SELECT 1")
    new.close()


async def queries(request: HttpRequest) -> HttpResponse:
    for _ in range(3):
        await query()
    return HttpResponse()


urlpatterns = [path("queries/", queries)]


@pytest.fixture
def own_pages(own_middleware: None, settings: Any) -> None:
    settings.ROOT_URLCONF = __name__


async def test_missing_page_makes_no_further_thread_hop(thread_hops: Any) -> None:
    [hop] = await thread_hops("/nowhere/")
    assert hop.what.endswith("response_for_exception")


def test_values_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBUG", "True")
    monkeypatch.setenv("ALLOWED_HOSTS", "a.example, b.example,")
    monkeypatch.setenv("REQUEST_TIMEOUT", "2.5")
    settings = importlib.reload(config_settings)
    assert settings.DEBUG is True
    assert settings.ALLOWED_HOSTS == ["a.example", "b.example"]
    assert settings.REQUEST_TIMEOUT == 2.5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SERVER_TIMING", "yes"),
        ("REQUEST_TIMEOUT", "-1"),
        ("REQUEST_TIMEOUT", "nan"),
        ("REQUEST_THREADS", "0"),
        ("REQUEST_THREADS", "1.5"),
        ("REQUEST_THREADS", "many"),
    ],
)
def test_wrong_value_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ImproperlyConfigured, match=f"{name}='{value}' is refused: use"):
        importlib.reload(config_settings)


@pytest.mark.parametrize("value", [" ", "short", "x" * 49])
def test_weak_key_is_refused_outside_of_debug_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("SECRET_KEY", value)
    with pytest.raises(ImproperlyConfigured, match=r"^SECRET_KEY is not set or too sh"):
        importlib.reload(config_settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALLOWED_HOSTS", "https://a.example"),
        ("ALLOWED_HOSTS", "a.example:8000"),
        ("ALLOWED_HOSTS", "*.a.example"),
        ("ALLOWED_HOSTS", "a.example/"),
        ("ALLOWED_HOSTS", "a_b"),
        ("CSRF_TRUSTED_ORIGINS", "a.example"),
        ("CSRF_TRUSTED_ORIGINS", "https://a.example/"),
        ("CSRF_TRUSTED_ORIGINS", "ftp://a.example"),
        ("CSRF_TRUSTED_ORIGINS", "https://A.example"),
        ("REQUEST_TIMEOUT", "0.0009"),
        ("REQUEST_TIMEOUT", "0.0"),
        ("RESPONSE_HEADER", "X Status: OK"),
        ("RESPONSE_HEADER", "X-Status: caf\u00e9"),
        ("RESPONSE_HEADER", "Content-Encoding: gzip"),
        ("RESPONSE_HEADER", "set-cookie: a=b"),
    ],
)
def test_value_that_would_break_requests_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, f"http://b.example, {value}" if "CSRF" in name else value)
    with pytest.raises(
        ImproperlyConfigured, match=re.escape(f"{name}={value!r} is re")
    ):
        importlib.reload(config_settings)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ALLOWED_HOSTS", ["*", ".a.example", "A.example", "10.0.0.1", "[::1]"]),
        ("CSRF_TRUSTED_ORIGINS", ["https://*.a.example", "http://a:8000"]),
    ],
)
def test_hosts_and_origins_that_django_knows_are_read(
    monkeypatch: pytest.MonkeyPatch, name: str, values: list[str]
) -> None:
    monkeypatch.setenv(name, ",".join(values))
    assert getattr(importlib.reload(config_settings), name) == values


POSTGRESQL = "postgresql://me:hunter2@host/name"


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///x?bogus=1",
        "sqlite:///x?timeout=soon",
        "sqlite:///x?conn_max_age=abc",
        "sqlite:///x?atomic_requests=true",
        "sqlite:///",
        "sqlite://x.sqlite3",
        "postgresql://me:hunter2@host/",
        "postgresql://me:hunter2@host",
        "postgresql://me:1/x?hunter2=2@host/name",
        # Only the driver knows this.
        f"{POSTGRESQL}?bogus=1",
        f"{POSTGRESQL}?sslmode=maybe",
        f"{POSTGRESQL}?connect_timeout=soon",
        f"{POSTGRESQL}?conn_health_checks=maybe",
        f"{POSTGRESQL}?atomic_requests=true",
        f"{POSTGRESQL}?autocommit=false",
        f"{POSTGRESQL}?dbname=other",
        f"{POSTGRESQL}?pool=true",
    ],
)
def test_database_url_that_the_driver_does_not_take_is_refused(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    with pytest.raises(ImproperlyConfigured, match=r"^DATABASE_URL=.* refu") as caught:
        importlib.reload(config_settings)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///x?timeout=20&transaction_mode=IMMEDIATE&init_command=PRAGMA x",
        "sqlite://:memory:",
        "postgresql:///name?host=/run/x,/run/y&port=1,2&user=me&gssencmode=require",
        f"{POSTGRESQL}?sslmode=require&application_name=a&options=-c%20search_path%3Da",
        f"{POSTGRESQL}?conn_max_age=None&disable_server_side_cursors=true",
        f"{POSTGRESQL}?isolation_level=3&assume_role=me&conn_health_checks=false",
    ],
)
def test_database_url_that_the_driver_takes_is_read(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setattr("config.backends.find_spec", lambda name: True)
    monkeypatch.setenv("DATABASE_URL", url)
    importlib.reload(config_settings)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("CACHE_URL", "locmem", "use locmem://, or after `uv add redis` redis://"),
        ("CACHE_URL", "memcached://host", "use locmem://"),
        ("CACHE_URL", "redis://", "use locmem://"),
        ("CACHE_URL", "redis://:hunter2@host/name", "use locmem://"),
        ("CACHE_URL", "redis://:hun/ter2@host", "use locmem://"),
        ("CACHE_URL", "redis://host?hunter2=2", "use locmem://"),
        ("EMAIL_URL", "me:hunter2@host:25", "use smtp+tls://user:password@host:587"),
        ("EMAIL_URL", "smtp://me:hunter2@host", "use smtp+tls://"),
        ("EMAIL_URL", "smtp://hunter2@host:25", "use smtp+tls://"),
        ("EMAIL_URL", "smtp://me:hunter2@host:0", "use smtp+tls://"),
        ("EMAIL_URL", "smtp://me:hunter2@host:65536", "use smtp+tls://"),
        ("EMAIL_URL", "smtp://me:hun/ter2@host:25", "use smtp+tls://"),
        ("EMAIL_URL", "smtp+tls+ssl://me:hunter2@host:25", "use smtp+tls://"),
        ("EMAIL_URL", "imap://me:hunter2@host:25", "use smtp+tls://"),
        ("MEDIA_ROOT", "files", "use an absolute path"),
        ("DATABASE_URL", "embedded://x", "use sqlite:///"),
    ],
)
def test_address_of_a_server_is_refused_without_its_password(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, allowed: str
) -> None:
    monkeypatch.setattr("config.backends.find_spec", lambda name: True)
    monkeypatch.setenv(name, value)
    with pytest.raises(ImproperlyConfigured, match=re.escape(allowed)) as caught:
        importlib.reload(config_settings)
    assert re.match(rf"{name}='[a-z+]*:?(\.\.\.)?' is refused: ", str(caught.value))


def test_redis_needs_its_package_to_be_installed() -> None:
    with pytest.raises(ValueError, match="after `uv add redis`"):
        parse_cache_url("redis://host")


def test_redis_url_is_passed_on_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("config.backends.find_spec", lambda name: True)
    for url in ("redis://host", "rediss://me:a,b@host:1/2?ssl_cert_reqs=none"):
        assert parse_cache_url(url)["LOCATION"] == [url]


def test_name_and_password_of_a_mail_server_may_hold_every_character() -> None:
    values = str(parse_email_url("smtp+tls://me@x.example:%2F:@%25@host:587"))
    assert "'me@x.example'" in values
    assert "'/:@%'" in values


def test_upload_of_a_test_is_saved_outside_of_the_project() -> None:
    name = default_storage.save("upload.txt", ContentFile(b"x"))
    path = Path(default_storage.path(name))
    assert path.read_bytes() == b"x"
    assert ROOT not in path.parents


BROKEN = {
    "mark": b"\xef\xbb\xbfSECRET_KEY=hunter2",
    "UTF-16": "SECRET_KEY=hunter2".encode("utf-16"),
    "UTF-16 without a mark": "SECRET_KEY=hunter2".encode("utf-16-le"),
    "Latin-1": b"SECRET_KEY=hunter2\xe9",
    "open quote": b"A=1\nSECRET_KEY='hunter2",
    "no name": b"=hunter2",
    "two words": b"SECRET hunter2",
}


@pytest.mark.parametrize("fault", BROKEN)
def test_faulty_dotenv_is_refused_without_a_value(tmp_path: Path, fault: str) -> None:
    (tmp_path / ".env").write_bytes(BROKEN[fault])
    with pytest.raises(
        ImproperlyConfigured, match=r"^\.env must have NAME=value lines"
    ) as caught:
        Environment(tmp_path / ".env", {})
    assert "hunter2" not in str(caught.value)


def test_folder_in_place_of_dotenv_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ImproperlyConfigured, match=r"^\.env must have NAME=value lines"
    ):
        Environment(tmp_path, {})


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mysql://me:hunter2@host/name", "use sqlite:///"),
        ("me:hunter2@host", "use sqlite:///"),
        ("postgresql://me:hunter2@host:port/name", "use sqlite:///"),
        ("postgresql://me:hunter2@host/name", "uv add 'psycopg"),
    ],
)
def test_refused_database_url_does_not_show_its_password(
    monkeypatch: pytest.MonkeyPatch, url: str, expected: str
) -> None:
    monkeypatch.setattr("config.backends.find_spec", lambda name: None)
    monkeypatch.setenv("DATABASE_URL", url)
    with pytest.raises(ImproperlyConfigured, match=expected) as caught:
        importlib.reload(config_settings)
    assert "hunter2" not in str(caught.value)


def test_query_of_the_database_url_outranks_the_timeouts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("config.backends.find_spec", lambda name: True)
    url = "postgresql://host/name?connect_timeout=5&sslmode=require"
    options = parse_database_url(url)["OPTIONS"]
    assert (options["connect_timeout"], options["sslmode"]) == (5, "require")
    assert options["keepalives_idle"] == 10


def test_every_line_of_the_example_may_be_uncommented(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("RESPONSE_HEADER", "SECRET_KEY"):
        monkeypatch.delenv(name, raising=False)
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    dotenv = re.sub(r"(?m)^#(?=[A-Z_]+=)", "", example)
    dotenv = dotenv.replace("SECRET_KEY=", "SECRET_KEY=x")
    (tmp_path / ".env").write_text(dotenv)
    env = Environment(tmp_path / ".env", {})
    header = env.text("RESPONSE_HEADER")
    assert header == os.environ["EXPECTED_HEADER"]
    # Only names that the settings use may be in .env.
    source = (ROOT / "config" / "settings.py").read_text(encoding="utf-8")
    for name in re.findall(r'env\.\w+\(\s*"([A-Z_]+)"', source):
        env.text(name)
    env.refuse_unknown()


@pytest.mark.usefixtures("own_pages")
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("debug", "sent"), [(True, True), (False, False)])
async def test_queries_are_counted_only_while_debug_is_on(
    async_client: AsyncClient, settings: Any, debug: bool, sent: bool
) -> None:
    settings.SERVER_TIMING = "always"
    settings.DEBUG = debug
    try:
        value = (await async_client.get("/queries/")).headers["Server-Timing"]
    finally:
        connection_created.disconnect(watch_connection)
    found = re.search(r'db;dur=\d+\.\d;desc="3 queries", app;', value)
    assert bool(found) is sent


@pytest.mark.usefixtures("own_middleware")
def test_request_id_is_in_every_line_under_the_sync_client(
    client: Client, log_lines: LogLines
) -> None:
    response = client.get("/log/", headers={"X-Request-ID": "a.B_c-9"})
    assert response["X-Request-ID"] == "a.B_c-9"
    lines = [*log_lines("pages"), *log_lines("serving.timing")]
    assert [line["request_id"] for line in lines] == ["a.B_c-9"] * 4


@pytest.mark.usefixtures("own_middleware")
async def test_filter_changes_what_is_logged(
    async_client: AsyncClient, log_lines: LogLines
) -> None:
    def redact(record: logging.LogRecord) -> bool:
        vars(record)["path"] = "/redacted/"
        return True

    logger = logging.getLogger("serving.timing")
    logger.addFilter(redact)
    await async_client.get("/answer/200/")
    logger.removeFilter(redact)
    [line] = log_lines("serving.timing")
    assert line["path"] == "/redacted/"


@pytest.mark.usefixtures("own_middleware")
async def test_record_factory_makes_the_record(
    async_client: AsyncClient, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = logging.LogRecord(*args, **kwargs)
        vars(record)["trace"] = "0af7"
        return record

    monkeypatch.setattr(logging, "_logRecordFactory", factory)
    await async_client.get("/answer/200/")
    [line] = log_lines("serving.timing")
    assert line["trace"] == "0af7"


@pytest.mark.usefixtures("own_middleware")
async def test_page_redirects_to_https_where_a_probe_does_not(
    async_client: AsyncClient, settings: Any
) -> None:
    settings.MIDDLEWARE += ["django.middleware.security.SecurityMiddleware"]
    settings.SECURE_SSL_REDIRECT = True
    assert (await async_client.get("/log/")).status_code == 301
    assert (await async_client.get("/livez")).status_code == 200


async def test_caplog_sees_lines_of_structlog_and_of_the_standard_library(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        logging.getLogger("shop").info("Paid %s", "7 EUR", extra={"order": 7})
        structlog.get_logger("shop").info("Shipped")
    assert caplog.messages[0] == "Paid 7 EUR"
    assert "Shipped" in caplog.messages[1]
