"""Start a server on its own core, check its answers, and load it with wrk."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contender import HOST, Contender, Environment, Refused

TIMING_LINE = b"Request took "
SCRIPT = Path(__file__).with_name("wrk.lua")


@dataclass(frozen=True)
class Cores:
    """One core serves, and the other does everything else, including the databases."""

    server: int
    load: int

    @classmethod
    def split(cls) -> "Cores | None":
        """Pin this process and all that it starts; does nothing with a single core."""
        if not hasattr(os, "sched_setaffinity") or not shutil.which("taskset"):
            return None
        available = sorted(os.sched_getaffinity(0))
        if len(available) < 2:
            return None
        cores = cls(server=available[0], load=available[1])
        os.sched_setaffinity(0, {cores.load})
        return cores


@dataclass(frozen=True)
class Answer:
    status: int
    header: str | None
    body: bytes


@dataclass(frozen=True)
class Load:
    requests_per_second: float
    p50_ms: float
    p99_ms: float
    requests: int


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    port: int
    log: Path
    seconds_to_first_answer: float = 0.0

    def get(self, path: str) -> Answer:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=30)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return Answer(
                response.status, response.getheader("X-Status"), response.read()
            )
        finally:
            connection.close()

    def load(
        self, path: str, connections: int, seconds: int, pause_ms: int = 0
    ) -> Load:
        return self._counted(self._wrk(path, connections, seconds, pause_ms))

    @contextmanager
    def kept_busy(
        self, path: str, connections: int, pause_ms: int = 0
    ) -> Iterator[list[Load]]:
        """Request the path until the block ends."""
        wrk, loads = self._wrk(path, connections, 600, pause_ms), list[Load]()
        try:
            yield loads
            # wrk ends early, and counts the requests so far.
            wrk.send_signal(signal.SIGINT)
            loads.append(self._counted(wrk))
        finally:
            wrk.kill()
            wrk.communicate()

    def _wrk(
        self, path: str, connections: int, seconds: int, pause_ms: int = 0
    ) -> "subprocess.Popen[str]":
        command = [
            *("wrk", "--threads=1", f"--connections={connections}"),
            *(f"--duration={seconds}s", "--timeout=60s", f"--script={SCRIPT}"),
            f"http://{HOST}:{self.port}{path}",
        ]
        return subprocess.Popen(
            command,
            env=os.environ | ({"WRK_PAUSE": str(pause_ms)} if pause_ms else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _counted(self, wrk: "subprocess.Popen[str]") -> Load:
        output, errors = wrk.communicate(timeout=120)
        if wrk.returncode:
            raise Refused(f"wrk failed: {(errors or output).strip()}")
        counted = json.loads(output.splitlines()[-1])
        if counted["refused"] or counted["broken"]:
            raise Refused(
                f"{counted['refused']} answers were no success and "
                f"{counted['broken']} connections broke under load"
            )
        return Load(
            requests_per_second=round(counted["requests"] / counted["seconds"], 1),
            p50_ms=counted["p50_ms"],
            p99_ms=counted["p99_ms"],
            requests=counted["requests"],
        )

    def memory_kib(self) -> int:
        return self._status("VmRSS")

    def threads(self) -> int:
        return self._status("Threads")

    def _status(self, name: str) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        row = next(row for row in status.splitlines() if row.startswith(f"{name}:"))
        return int(row.split()[1])

    def timing_lines(self) -> int:
        return self.log.read_bytes().count(TIMING_LINE)

    def wait_for_timing_lines(self, expected: int, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (lines := self.timing_lines()) < expected:
            if time.monotonic() > deadline:
                raise Refused(f"{expected} requests left {lines} timing lines")
            time.sleep(0.01)

    def tail(self) -> str:
        rows = self.log.read_text(errors="replace").strip().splitlines()
        return rows[-1] if rows else "nothing in its log"


@contextmanager
def served(
    environment: Environment,
    contender: Contender,
    log: Path,
    cores: Cores | None,
    variables: dict[str, str],
    ready: str,
) -> Iterator[Server]:
    port = _free_port()
    uvicorn = ("uvicorn", contender.application, "--no-access-log")
    uvloop = ("--loop", "uvloop", "--http", "httptools")
    # By default, a loop that was blocked for five seconds closes connections although
    # their next request has arrived meanwhile.
    keep_alive = ("--timeout-keep-alive", "60")
    bolt = ("django", "runbolt", "--no-admin")
    command = [
        *(("taskset", "--cpu-list", str(cores.server)) if cores else ()),
        *(str(environment.python), "-m"),
        *(
            bolt
            if contender.application == "runbolt"
            else (*uvicorn, *uvloop, *keep_alive)
        ),
        *("--host", HOST, "--port", str(port)),
    ]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as stream:
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=environment.folder,
            env=environment.variables | variables,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    server = Server(process, port, log)
    try:
        _wait(server, ready, started)
        server.seconds_to_first_answer = round(time.perf_counter() - started, 4)
        yield server
    finally:
        _end(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _wait(server: Server, path: str, started: float) -> None:
    while time.perf_counter() - started < 60:
        if server.process.poll() is not None:
            raise Refused(f"the server did not start: {server.tail()}")
        try:
            server.get(path)
        except OSError:
            time.sleep(0.002)
        else:
            return
    raise Refused("the server did not answer within a minute")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        # Long enough to flush its log, but a loop that is still blocked by
        # requests of a load generator that has ended is not waited for.
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
