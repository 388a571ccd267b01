"""What only a live server shows: it starts, and all of its lines have one format."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path

COMMAND = "-W error -m uvicorn config.asgi:application --log-config config/logging.json"
ENVIRONMENT = {"DJANGO_SETTINGS_MODULE": "tests.settings", "LOG_FORMAT": "json"}


def test_server_answers_and_logs_in_one_format(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (tmp_path / "log").open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, *COMMAND.split(), "--port", str(port)],
            cwd=Path(__file__).parent.parent,
            env=os.environ | ENVIRONMENT | {"LOG_LEVEL": "INFO"},
            stderr=stderr,
        )
    try:
        status = ask(port, process)
    finally:
        process.terminate()
        process.wait(30)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    [timing] = [line for line in lines if line["logger"] == "serving.timing"]
    # A line feed from the client does not start a new line.
    assert (timing["path"], timing["status"]) == ("/nowhere\n/", status)
    loggers = {line["logger"] for line in lines}
    assert loggers & {"uvicorn.error", "uvicorn.access"} == {"uvicorn.error"}


def ask(port: int, process: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        client = HTTPConnection("127.0.0.1", port, timeout=10)
        with suppress(ConnectionRefusedError), closing(client):
            client.request("GET", "/nowhere%0A/")
            return client.getresponse().status
        time.sleep(0.02)
    raise AssertionError("The server does not listen.")


def test_docker_and_ci_use_the_same_python() -> None:
    files = ["Dockerfile", ".gitlab-ci.yml", ".github/workflows/ci.yml"]
    text = "".join(path.read_text() for path in map(Path, files) if path.exists())
    assert len({*re.findall(r'(?:python:|UV_PYTHON: ")([\d.]+)', text)}) <= 1
