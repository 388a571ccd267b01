"""Instrumentations report about a request what they report under stock Django."""

import gzip
import json
import os
import re
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgpack
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
)

from .server import Server, serve

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent
NUMBERS = range(16)
STATUS = {
    "async": 200,
    "sync": 200,
    "stream": 200,
    "async-error": 500,
    "sync-error": 500,
    "nowhere": 404,
    # Posted without a CSRF token, so that no view is called.
    "refused": 403,
}
SENTRY_STATUS = {
    200: "ok",
    500: "internal_error",
    404: "not_found",
    403: "permission_denied",
}
PARENT = "00f067aa0ba902b7"


class Backend(ThreadingHTTPServer):
    """Accepts whatever an instrumentation sends, at any path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.received: list[tuple[str, bytes]] = []


class Receiver(BaseHTTPRequestHandler):
    # Keeps connections alive.
    protocol_version = "HTTP/1.1"
    # Head and body in one packet, to avoid delayed acknowledgements.
    wbufsize = -1
    server: Backend

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        self.server.received.append((self.path, body))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_PUT = do_POST

    def log_message(self, format: str, *args: Any) -> None:
        pass


def trace_id(handler: str, kind: str, number: int) -> str:
    """The headers of the caller's trace; each request has its own."""
    # 64 bits, as in Datadog's headers.
    return f"{1 + list(STATUS).index(kind):020x}{len(handler):04x}{number:08x}"


# What each tool reports: the trace id and facts about it. A "root" describes the
# request as a whole.
Facts = Iterator[tuple[str, tuple[Any, ...]]]


def sentry(backend: Backend, server: Server) -> Facts:
    for _, body in backend.received:
        _, _, rest = body.partition(b"\n")
        while rest.strip():
            line, _, rest = rest.partition(b"\n")
            header = json.loads(line)
            length = header.get("length", rest.find(b"\n"))
            item, rest = json.loads(rest[:length]), rest[length + 1 :]
            for log in item.get("items", ()):
                yield log["trace_id"], ("log", log["body"])
            if header["type"] not in {"event", "transaction"}:
                continue
            trace = item["contexts"]["trace"]
            user = item.get("user", {}).get("username")
            path = urlsplit(item["request"]["url"]).path
            # Without a route it is the URL, with the server's port.
            name = item["transaction"].rpartition(":")[2]
            about = (name, path, user, trace.get("status"))
            if header["type"] == "event":
                yield trace["trace_id"], ("error", *about)
            else:
                is_child = trace["parent_span_id"] == PARENT
                yield trace["trace_id"], ("root", *about, is_child)
            for span in item.get("spans", ()):
                name = span["description"]
                # Django's receivers of the request signals, which onloop does not call.
                if not name.startswith(("django.core.", "django.db.")):
                    yield trace["trace_id"], ("span", span["op"], name)


def opentelemetry(backend: Backend, server: Server) -> Facts:
    for path, body in backend.received:
        if path == "/v1/traces":
            for traces in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in traces.scope_spans:
                    for span in scope.spans:
                        yield span.trace_id.hex(), about_span(span)
        elif path == "/v1/logs":
            for logs in ExportLogsServiceRequest.FromString(body).resource_logs:
                for log in logs.scope_logs:
                    for record in log.log_records:
                        fact = ("log", record.body.string_value)
                        yield record.trace_id.hex(), fact
    yield from logged(server, "otelTraceID", str)


def about_span(span: Any) -> tuple[Any, ...]:
    values = {a.key: a.value.string_value or a.value.int_value for a in span.attributes}
    keys = ("http.route", "http.target", "http.status_code", "db.statement")
    return (
        "root" if span.parent_span_id.hex() == PARENT else "span",
        span.name,
        *map(values.get, keys),
        span.status.code,
        *(event.name for event in span.events),
    )


def ddtrace(backend: Backend, server: Server) -> Facts:
    for path, body in backend.received:
        for trace in msgpack.unpackb(body) if path == "/v0.4/traces" else ():
            for span in trace:
                meta = span.get("meta", {})
                is_root = span.get("parent_id") == int(PARENT, 16)
                yield (
                    f"{span['trace_id']:032x}",
                    (
                        "root" if is_root else "span",
                        span["name"],
                        span["resource"],
                        urlsplit(meta.get("http.url", "")).path,
                        meta.get("http.route"),
                        meta.get("http.status_code"),
                        meta.get("error.type"),
                        meta.get("django.user.name"),
                        span.get("error", 0),
                    ),
                )
    # A 64-bit id is a decimal number.
    yield from logged(
        server, "dd.trace_id", lambda id: f"{int(id):032x}" if id.isdigit() else id
    )


def newrelic(backend: Backend, server: Server) -> Facts:
    for told in server.lines():
        if nodes := told.get("nodes"):
            about = [told["path"], *told["errors"]]
            # Without a view, it names the handler; or the middleware, which New Relic
            # instruments only in the first handler that is created.
            if "instrumented" in told["name"]:
                about.append(told["name"])
            is_child = told["parent"] == PARENT
            yield told["trace_id"], ("root", *about, is_child)
            for kind, name in nodes:
                if kind == "DatabaseNode" or (
                    kind == "FunctionNode" and "instrumented" in str(name)
                ):
                    yield told["trace_id"], (kind, name)


def logged(server: Server, field: str, parse: Callable[[str], str]) -> Facts:
    for line in server.lines():
        if line["logger"] in {"project", "django.request"}:
            yield parse(line[field]), ("line", line["message"])


class Tool(NamedTuple):
    read: Callable[[Backend, Server], Facts]
    # What else it has to report about a request to this kind of view.
    expected: Callable[[str], set[str]]
    # In front of uvicorn.
    command: list[str | Path]
    env: dict[str, str]
    # A request with this trace and this parent.
    headers: Callable[[str], dict[str, str]]


TOOLS = {
    "sentry": Tool(
        sentry,
        lambda kind: {f"/{kind}/{{number}}", SENTRY_STATUS[STATUS[kind]]},
        [],
        {"BACKEND": "http://key@{backend}/1"},
        lambda id: {"sentry-trace": f"{id}-{PARENT}-1"},
    ),
    "opentelemetry": Tool(
        opentelemetry,
        lambda kind: {f"{kind}/<int:number>", str(STATUS[kind])},
        [BIN / "opentelemetry-instrument"],
        {
            "DJANGO_SETTINGS_MODULE": "tests.onloop.settings",
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://{backend}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_PYTHON_LOG_CORRELATION": "true",
        },
        lambda id: {"traceparent": f"00-{id}-{PARENT}-01"},
    ),
    "ddtrace": Tool(
        ddtrace,
        lambda kind: {f"{kind}/<int:number>", str(STATUS[kind])},
        [BIN / "ddtrace-run"],
        {
            "DD_TRACE_AGENT_URL": "http://{backend}",
            "DD_TRACE_API_VERSION": "v0.4",
            "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
            "DD_REMOTE_CONFIGURATION_ENABLED": "false",
        },
        lambda id: {
            "x-datadog-trace-id": str(int(id, 16)),
            "x-datadog-parent-id": str(int(PARENT, 16)),
            "x-datadog-sampling-priority": "1",
        },
    ),
    "newrelic": Tool(
        newrelic,
        lambda kind: {"builtins:ArithmeticError"} if STATUS[kind] == 500 else set(),
        [BIN / "newrelic-admin", "run-program"],
        {
            "NEW_RELIC_LICENSE_KEY": "x" * 40,
            "NEW_RELIC_DEVELOPER_MODE": "true",
            "NEW_RELIC_STARTUP_TIMEOUT": "10",
        },
        lambda id: {"traceparent": f"00-{id}-{PARENT}-01"},
    ),
}
# By the id of the trace.
Told = dict[str, list[tuple[Any, ...]]]


@pytest.fixture(
    scope="module",
    params=[pytest.param(tool, marks=pytest.mark.xdist_group(tool)) for tool in TOOLS],
)
def tool(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def told(tool: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """What a tool reports about the same concurrent requests to each handler."""
    read, _, command, settings, headers = TOOLS[tool]
    with Backend() as backend, ExitStack() as stack:
        thread = threading.Thread(target=backend.serve_forever, daemon=True)
        thread.start()
        stack.callback(backend.shutdown)
        address = f"127.0.0.1:{backend.server_port}"
        env = os.environ | {"TOOL": tool, "PYTHONWARNINGS": "default"}
        env |= {key: text.format(backend=address) for key, text in settings.items()}
        application = "tests.onloop.instrumented_project:application"
        server = stack.enter_context(
            serve(
                [*command, BIN / "uvicorn", application, "--no-access-log"],
                tmp_path_factory.mktemp(tool) / "log",
                ROOT,
                env,
            )
        )
        pool = stack.enter_context(ThreadPoolExecutor(len(NUMBERS)))

        def ask(handler: str, kind: str, number: int) -> int:
            id = trace_id(handler, kind, number)
            own = {"x-handler": handler, "cookie": f"sessionid=session-{number}"}
            method = "POST" if kind == "refused" else "GET"
            path = f"/{kind}/{number}"
            return server.request(path, method, headers=own | headers(id))[0]

        for handler, kind in product(("stock", "onloop"), STATUS):
            statuses = pool.map(partial(ask, handler, kind), NUMBERS)
            assert set(statuses) == {STATUS[kind]}

        told: Told = defaultdict(list)

        def is_complete() -> bool:
            server.request("/flush/")
            told.clear()
            for id, fact in read(backend, server):
                told[id].append(fact)
            return all(
                any(fact[0] == "root" for fact in told[trace_id(*one)])
                for one in product(("stock", "onloop"), STATUS, NUMBERS)
            )

        server.wait_for(is_complete)
        yield told


@pytest.mark.parametrize("kind", STATUS)
def test_instrumentation_reports_the_same_as_under_stock_django(
    told: Told, tool: str, kind: str
) -> None:
    for number in NUMBERS:
        onloop = sorted(told[trace_id("onloop", kind, number)], key=str)
        stock = told[trace_id("stock", kind, number)]
        if (tool, kind) == ("ddtrace", "stream"):
            # Under stock Django, ddtrace closes the trace before the stream ends.
            stock = [*stock, ("line", f"the end of /stream/{number}")]
        assert onloop == sorted(stock, key=str)


@pytest.mark.parametrize("kind", STATUS)
def test_instrumentation_keeps_concurrent_requests_apart(
    told: Told, tool: str, kind: str
) -> None:
    expected = TOOLS[tool].expected(kind)
    if kind == "nowhere":
        expected -= {f"/{kind}/{{number}}", f"{kind}/<int:number>"}
    if tool in {"sentry", "opentelemetry"}:
        # Logged without Logger.info(), and seen by their integrations all the same.
        expected |= {"the end of"}
    for number in NUMBERS:
        facts = told[trace_id("onloop", kind, number)]
        values = {str(value) for fact in facts for value in fact}
        numbers = {n for v in values for n in re.findall(r"(?:user|/)(\d+)$", v)}
        assert numbers == {str(number)}
        values |= {value.rpartition(" ")[0] for value in values}
        assert values >= expected | {f"/{kind}/{number}"}
        # The ORM's query, in any thread.
        assert any("django_session" in v for v in values) == (
            STATUS[kind] in {200, 500}
        )
