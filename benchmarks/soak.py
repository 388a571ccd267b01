"""Send mixed requests to a generated service with Sentry, and check its promises.

`python -m benchmarks.soak [--requests 50000] [--django 5.2]`; exits with 1 if a line
is missing or wrong, a limit is exceeded, or memory grows.
"""

import argparse
import asyncio
import gzip
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.contender import (
    HOST,
    WORK,
    Contender,
    Environment,
    Workshop,
    find_python,
)
from benchmarks.load import Server, served
from benchmarks.run import postgresql, raise_file_limit

CLIENTS = 96
REQUEST_THREADS = 40
# The main thread, the log's, Sentry's, asyncio's and uvloop's own.
OTHER_THREADS = 20
UPLOAD = 100_000
# Compared with the resident memory after the first fifth of the requests.
GROWTH = 0.10

COMPLETED, GONE = (200, "completed"), (499, "disconnected")


@dataclass(frozen=True)
class Kind:
    path: str
    # How many of a hundred requests.
    weight: int
    # The allowed pairs of status and outcome in its line.
    ends: frozenset[tuple[int, str]]
    # What the client does after it has sent its request.
    client: str = "reads"


def kind(path: str, weight: int, *ends: tuple[int, str], client: str = "reads") -> Kind:
    return Kind(path, weight, frozenset(ends), client)


KINDS = (
    kind("/json/{}", 20, COMPLETED),
    kind("/sync/{}", 12, COMPLETED),
    kind("/orm/{}", 15, COMPLETED),
    kind("/session/{}", 10, COMPLETED),
    kind("/later/{}", 5, COMPLETED),
    kind("/fail/{}", 3, (500, "completed")),
    kind("/fail-sync/{}", 2, (500, "completed")),
    kind("/nowhere/{}", 2, (404, "completed")),
    kind("/upload/{}", 5, COMPLETED),
    kind("/stream/5/{}", 7, COMPLETED),
    kind("/stream-sync/{}", 4, COMPLETED),
    kind("/stream-fails/{}", 2, (200, "failed"), client="reads to the end"),
    kind("/slow/{}", 3, GONE, client="leaves"),
    kind("/upload/{}", 3, GONE, client="leaves amid its upload"),
    kind("/stream/1000/{}", 4, (200, "disconnected"), client="leaves amid the stream"),
    kind("/json/{}", 3, COMPLETED, GONE, client="leaves at once"),
)


@dataclass
class Soak:
    port: int
    wanted: int
    sent: dict[str, Kind] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(LoadClient(self, number).run())


class LoadClient:
    """One connection at a time, and a new one after each request that is abandoned."""

    def __init__(self, soak: Soak, number: int) -> None:
        self.soak = soak
        self.number = number
        self.random = random.Random(number)
        self.reader: asyncio.StreamReader | None = None
        self.cookie = ""
        self.counted = 0

    async def run(self) -> None:
        weights = [kind.weight for kind in KINDS]
        while len(self.soak.sent) < self.soak.wanted:
            (kind,) = self.random.choices(KINDS, weights)
            token = f"soak-{self.number}-{len(self.soak.sent)}"
            self.soak.sent[token] = kind
            try:
                async with asyncio.timeout(60):
                    await self.request(kind, token)
            except (OSError, EOFError, ValueError, TimeoutError) as error:
                self.violate(kind, token, repr(error))
                self.leave()
        self.leave()

    async def request(self, kind: Kind, token: str) -> None:
        if not self.reader:
            self.reader, self.writer = await asyncio.open_connection(
                HOST, self.soak.port
            )
        path = kind.path.format(token)
        body = b"x" * UPLOAD if path.startswith("/upload/") else b""
        head = (
            f"{'POST' if body else 'GET'} {path} HTTP/1.1\r\nHost: {HOST}\r\n"
            f"X-Request-ID: {token}\r\nContent-Length: {len(body)}\r\n"
            f"Cookie: {self.cookie}\r\n\r\n"
        )
        if kind.client == "leaves amid its upload":
            body = body[: UPLOAD // 2]
        self.writer.write(head.encode() + body)
        await self.writer.drain()
        match kind.client:
            case "reads":
                self.verify(kind, token, *await self.read_response(self.reader))
                return
            case "leaves amid the stream":
                await self.reader.readuntil(token.encode() + b"\n\n")
            case "leaves" | "leaves amid its upload":
                await asyncio.sleep(self.random.uniform(0.005, 0.05))
            case "reads to the end":
                await self.reader.read()
        self.leave()

    async def read_response(
        self, reader: asyncio.StreamReader
    ) -> tuple[int, dict[str, str], bytes]:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        if "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        else:
            body = b""
            while size := int(await reader.readline(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
        return int(head[0].split()[1]), headers, body

    def verify(
        self, kind: Kind, token: str, status: int, headers: dict[str, str], body: bytes
    ) -> None:
        if status not in {expected for expected, _ in kind.ends}:
            self.violate(kind, token, f"answered {status}")
        if headers.get("x-request-id") != token:
            self.violate(kind, token, f"had the id {headers.get('x-request-id')}")
        if status != 200:
            return
        if token.encode() not in body:
            self.violate(kind, token, f"had the body {body[:60]!r}")
        if kind.path.startswith("/session/"):
            self.counted += 1
            if json.loads(body)["count"] != self.counted:
                self.violate(kind, token, f"is not its visit {self.counted}: {body!r}")
            if "set-cookie" in headers:
                self.cookie = headers["set-cookie"].partition(";")[0]

    def violate(self, kind: Kind, token: str, what: str) -> None:
        self.soak.violations.append(f"{token}, {kind.path}: {what}")

    def leave(self) -> None:
        if self.reader:
            self.reader = None
            self.writer.close()


class Sentry(BaseHTTPRequestHandler):
    """A Sentry server on loopback that keeps the events that it receives."""

    received: dict[str, list[dict[str, Any]]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        _, _, rest = body.partition(b"\n")
        while rest.strip():
            line, _, rest = rest.partition(b"\n")
            header = json.loads(line)
            length = header.get("length", rest.find(b"\n"))
            payload, rest = rest[:length], rest[length + 1 :]
            if header["type"] in self.received:
                self.received[header["type"]].append(json.loads(payload))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def sentry() -> Iterator[tuple[str, dict[str, list[dict[str, Any]]]]]:
    received: dict[str, list[dict[str, Any]]] = {"event": [], "transaction": []}
    handler = type("Handler", (Sentry,), {"received": received})
    server = ThreadingHTTPServer((HOST, 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://key@{HOST}:{server.server_port}/1", received
    finally:
        server.shutdown()
        server.server_close()


class Watch(threading.Thread):
    """The peak of threads and connections; the memory after a fifth and at the end."""

    def __init__(self, server: Server, soak: Soak, database: str) -> None:
        super().__init__(daemon=True)
        self.server, self.soak, self.database = server, soak, database
        self.threads = self.connections = self.memory = 0
        self.over = threading.Event()

    def run(self) -> None:
        with psycopg.connect(self.database, autocommit=True) as connection:
            while not self.over.wait(0.1):
                self.threads = max(self.threads, self.server.threads())
                row = connection.execute(
                    "SELECT count(*) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    " AND backend_type = 'client backend'"
                ).fetchone()
                self.connections = max(self.connections, row[0] if row else 0)
                if not self.memory and len(self.soak.sent) >= self.soak.wanted / 5:
                    self.memory = self.server.memory_kib()


def timing_lines(log: Path, violations: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The lines by request id. Every line must be JSON and have an id."""
    found: dict[str, list[dict[str, Any]]] = {}
    for text in log.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            violations.append(f"not JSON in the log: {text[:80]!r}")
            continue
        if line["logger"] == "serving.timing":
            found.setdefault(line["request_id"], []).append(line)
        elif line["logger"] == "soak" and line["request_id"] not in line["message"]:
            violations.append(f"the line of another request: {text}")
    return found


def compare(soak: Soak, lines: dict[str, list[dict[str, Any]]]) -> Counter[str]:
    """Check that each request has one correct line."""
    told: Counter[str] = Counter()
    for token, kind in soak.sent.items():
        ends = [(line["status"], line["outcome"]) for line in lines.pop(token, [])]
        told.update(f"{status} {outcome}" for status, outcome in ends)
        if len(ends) != 1 or ends[0] not in kind.ends:
            soak.violations.append(f"{token}, {kind.path}, {kind.client}: {ends}")
    # The first request came from the runner, which waited for the server to start.
    if len(lines) != 1:
        soak.violations.append(f"lines of requests that nobody sent: {list(lines)}")
    return told


def compare_events(soak: Soak, events: list[dict[str, Any]]) -> None:
    """Check that each error arrived at most once, with the data of its own request."""
    tokens = Counter(event.get("tags", {}).get("token") for event in events)
    for event in events:
        token = event.get("tags", {}).get("token")
        url = event.get("request", {}).get("url", "")
        error = event.get("exception", {}).get("values", [{}])[-1].get("value")
        if error not in soak.sent or not url.endswith(f"/{error}"):
            soak.violations.append(f"Sentry was told of {error} at {url}")
        elif "/fail" in url and (token != error or tokens[token] != 1):
            soak.violations.append(f"Sentry was told {tokens[token]} times of {token}")
    failed = sum(kind.path.startswith("/fail") for kind in soak.sent.values())
    # Its queue is short, so some may be dropped.
    if len(events) < failed / 2:
        soak.violations.append(f"Sentry was told of {len(events)} of {failed} errors")


def prepare(environment: Environment, database: str, variables: dict[str, str]) -> None:
    with psycopg.connect(database, dbname="postgres", autocommit=True) as server:
        server.execute("DROP DATABASE IF EXISTS soak WITH (FORCE)")
        server.execute("CREATE DATABASE soak")
    subprocess.run(
        [environment.python, "manage.py", "migrate", "--verbosity=0"],
        cwd=environment.folder,
        env=environment.variables | variables,
        check=True,
    )
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE item AS SELECT n AS id, 'item ' || n AS name"
            " FROM generate_series(1, 100) n"
        )


def soak_service(workshop: Workshop, django: str, wanted: int) -> list[str]:
    contender = Contender(
        f"service-{django}-soak",
        "",
        "config.asgi:application",
        ("sentry-sdk",),
        settings="soak_settings",
        django=django,
        admin=True,
    )
    environment = workshop.environment(contender, "postgresql")
    log = WORK / "logs" / f"soak-{django}.log"
    with postgresql() as (variables, _), sentry() as (dsn, received):
        folder, user = variables["PGHOST"], variables["PGUSER"]
        database = f"host={folder} user={user} dbname=soak"
        variables = variables | {
            "DATABASE_URL": "postgresql:///soak",
            "REQUEST_THREADS": str(REQUEST_THREADS),
            "SENTRY_DSN": dsn,
            # Django's warning about a stream with a synchronous iterator.
            "PYTHONWARNINGS": "ignore",
        }
        prepare(environment, database, variables)
        with served(
            environment, contender, log, None, variables, ready="/json/ready"
        ) as server:
            soak = Soak(server.port, wanted)
            watch = Watch(server, soak, database)
            watch.start()
            began = time.monotonic()
            asyncio.run(soak.run())
            seconds = time.monotonic() - began
            with suppress(Exception):
                server.wait_for_timing_lines(1 + len(soak.sent), 30)
            memory = server.memory_kib()
            watch.over.set()
            watch.join()
    told = compare(soak, timing_lines(log, soak.violations))
    compare_events(soak, received["event"])
    growth = memory / watch.memory - 1
    for what, most, bound in (
        ("threads", watch.threads, REQUEST_THREADS + OTHER_THREADS),
        ("connections", watch.connections, REQUEST_THREADS),
        ("of memory's growth in percent", round(100 * growth, 1), 100 * GROWTH),
    ):
        if most > bound:
            soak.violations.append(f"{most} {what}, and {bound:g} is the bound")
    print(
        f"Django {django}: {len(soak.sent)} requests in {seconds:.0f} s, "
        f"{sum(told.values())} lines: "
        + ", ".join(f"{count} {end}" for end, count in told.most_common())
        + f"\n  at most {watch.threads} threads and {watch.connections} connections; "
        f"memory {watch.memory / 1024:.1f} MiB after a fifth, {memory / 1024:.1f} at the "
        f"end; Sentry was told of {len(received['event'])} errors and "
        f"{len(received['transaction'])} transactions"
        f"\n  violations: {len(soak.violations)}"
    )
    for violation in soak.violations[:20]:
        print(f"    {violation}")
    return soak.violations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--django", nargs="+", default=["5.2", "6.1"])
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    raise_file_limit()
    workshop = Workshop(find_python())
    broken = [
        violation
        for django in arguments.django
        for violation in soak_service(workshop, django, arguments.requests)
    ]
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
