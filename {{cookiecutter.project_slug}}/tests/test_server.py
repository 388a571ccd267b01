"""What only a live server shows: it starts, and all of its lines have one format."""

import json
import os
import re
import subprocess
import sys
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from threading import Timer
from typing import Any

COMMAND = "-W error -m uvicorn config.asgi:application --log-config config/logging.json"
ENVIRONMENT = {"DJANGO_SETTINGS_MODULE": "tests.settings", "LOG_FORMAT": "json"}


def test_server_answers_and_logs_in_one_format() -> None:
    lines: list[dict[str, Any]] = []
    with subprocess.Popen(
        [sys.executable, *COMMAND.split(), "--port", "0"],
        cwd=Path(__file__).parent.parent,
        env=os.environ | ENVIRONMENT | {"LOG_LEVEL": "INFO"},
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        (timer := Timer(60, process.kill)).start()
        for text in process.stderr or ():
            lines.append(json.loads(text))
            if found := re.search(r"running on http://127\.0\.0\.1:(\d+)", text):
                status = ask(int(found[1]))
            if lines[-1]["logger"] == "serving.timing":
                # Not before, for Windows ends a process at once.
                process.terminate()
        timer.cancel()
    [timing] = [line for line in lines if line["logger"] == "serving.timing"]
    # A line feed from the client does not start a new line.
    assert (timing["path"], timing["status"]) == ("/nowhere\n/", status)
    loggers = {line["logger"] for line in lines}
    assert loggers & {"uvicorn.error", "uvicorn.access"} == {"uvicorn.error"}


def ask(port: int) -> int:
    with closing(HTTPConnection("127.0.0.1", port, timeout=10)) as client:
        client.request("GET", "/nowhere%0A/")
        return client.getresponse().status


def test_docker_and_ci_use_the_same_python() -> None:
    version = Path(".python-version").read_text("utf-8").strip()
    for path in map(Path, ["Dockerfile", ".gitlab-ci.yml"]):
        if path.exists():
            images = re.findall(r"\bpython:([\d.]+)", path.read_text("utf-8"))
            assert {*images} == {version}, path
