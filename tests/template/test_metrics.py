"""Metrics of a live service with two workers, read by Prometheus's own parsers."""

import fcntl
import json
import re
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from urllib.request import Request, urlopen

import psutil
import pytest
import yaml
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.samples import Sample

from tests.template.conftest import Bake, require
from tests.template.prompts import combination, slot
from tests.template.service import (
    TREE,
    Server,
    Service,
    finish,
    free_port,
    succeed,
)

# A service that test_combinations.py installs too.
ANSWERS = combination(metrics="prometheus", database="sqlite")
pytestmark = pytest.mark.xdist_group(slot(ANSWERS))
DEPLOY = TREE / "deploy"
LABELS = {"http_request_method", "http_route", "http_response_status_code", "outcome"}


@pytest.fixture(scope="module")
def service(install: Bake) -> Service:
    return install(**ANSWERS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for the workers' files, which the service creates."""
    return tmp_path_factory.mktemp("metrics") / "workers"


PORT = free_port()
COMMAND = "uv run --no-sync uvicorn config.asgi:application --port 8000"
WORKERS = f"{COMMAND} --workers 2 --log-config config/logging.json"
PRODUCTION = {
    "SECRET_KEY": "abcdefghij" * 5,
    "ALLOWED_HOSTS": "127.0.0.1",
    "DEBUG": "",
    "LOG_FORMAT": "json",
    "METRICS_PORT": str(PORT),
}


@pytest.fixture(scope="module")
def server(service: Service, folder: Path) -> Iterator[Server]:
    environment = PRODUCTION | {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    with service.serve(WORKERS, **environment) as server:
        server.wait_for(replace(server, port=PORT).listens)
        server.wait_for(lambda: value("request_threads_limit") == 80)
        # Workers do not wait for a request.
        server.wait_for(lambda: value("event_loop_lag_seconds_count") > 0)
        yield server


@pytest.fixture
def impatient(service: Service, tmp_path: Path) -> Service:
    """Logs at once that its port is in use."""
    copy = service.copy_in_environment(tmp_path / "service")
    copy.replace("serving/metrics.py", "PATIENCE = 40\n", "PATIENCE = 1\n")
    return copy


def workers(server: Server) -> list[psutil.Process]:
    [uvicorn] = psutil.Process(server.process.pid).children()
    children = uvicorn.children()
    return [child for child in children if "spawn_main" in str(child.cmdline())]


def listens(worker: psutil.Process) -> bool:
    connections = worker.net_connections("tcp")
    return any(c.laddr.port == PORT and c.status == "LISTEN" for c in connections)


def ask(server: Server) -> bool:
    return server.get("/hello/you/").status == 200


def scrape(accept: str = "text/plain") -> str:
    url = f"http://127.0.0.1:{PORT}/metrics"
    with urlopen(Request(url, headers={"Accept": accept}), timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def samples(name: str, **labels: str) -> list[Sample]:
    return [
        sample
        for family in parse_text(scrape())
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]


def value(name: str, **labels: str) -> float:
    return sum(sample.value for sample in samples(name, **labels))


def hellos() -> float:
    return value("http_server_requests_total", http_route="/hello/<str:name>/")


def test_one_worker_answers_for_all(server: Server, folder: Path) -> None:
    before = hellos()
    for _ in range(20):
        ask(server)
    server.wait_for(lambda: hellos() == before + 20)
    assert {hellos() for _ in range(20)} == {before + 20}
    duration = "http_server_request_duration_seconds_count"
    assert value(duration, http_route="/hello/<str:name>/") == before + 20
    assert [listens(worker) for worker in workers(server)].count(True) == 1
    # The other one waits for the lock, and not for the port.
    with (folder / f"{PORT}.lock").open() as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_clients_cannot_create_series(server: Server) -> None:
    for number in range(20):
        assert server.get(f"/{number}/?{number}").status == 404
    for method in ("PROPFIND", "MKCOL", "LOCK"):
        client = HTTPConnection("127.0.0.1", server.port, timeout=10)
        client.request(method, "/nowhere/")
        assert client.getresponse().status == 404
        client.close()
    name = "http_server_requests_total"
    server.wait_for(lambda: value(name, http_route="unmatched") == 23)
    labels = [sample.labels for sample in samples(name, http_route="unmatched")]
    methods = {label["http_request_method"] for label in labels}
    assert (len(labels), methods) == (2, {"GET", "_OTHER"})


def test_service_itself_has_no_metrics(server: Server) -> None:
    for headers in ({}, {"X-Forwarded-For": "127.0.0.1"}):
        assert server.get("/metrics", **headers).status == 404


def test_worker_that_died_is_in_the_counters_alone_and_another_one_answers(
    server: Server, folder: Path
) -> None:
    def live() -> set[int]:
        scrape()
        return {int(path.stem.split("_")[-1]) for path in folder.glob("gauge_live*")}

    before, [other, victim] = hellos(), sorted(workers(server), key=listens)
    victim.kill()
    # Until then it may accept connections, which it resets.
    victim.wait(30)
    server.wait_for(lambda: listens(other))
    server.wait_for(lambda: victim.pid not in live())
    assert hellos() == before
    server.wait_for(lambda: len(live()) == 2)
    assert live() == {worker.pid for worker in workers(server)}
    server.wait_for(lambda: value("request_threads_limit") == 80)


def test_port_in_use_is_one_error_and_metrics_are_served_once_it_is_free(
    impatient: Service, tmp_path: Path
) -> None:
    # As another process of the same user, which would let these share its port.
    before = socket.create_server(("", 0), reuse_port=True)
    port = before.getsockname()[1]
    environment = PRODUCTION | {
        "METRICS_PORT": str(port),
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "workers"),
    }
    with before, impatient.serve(WORKERS, **environment) as server:
        assert ask(server)
        server.wait_for(lambda: "No metrics on port" in server.log.read_text())
        before.close()
        server.wait_for(replace(server, port=port).listens)
    [line] = [x for x in server.lines("json") if x["logger"] == "serving.metrics"]
    assert line["level"] == "error"
    assert "PROMETHEUS_MULTIPROC_DIR" in line["message"]


def test_command_beside_a_server_says_nothing_of_its_port(
    server: Server, service: Service
) -> None:
    output = service.run("uv run --no-sync manage.py middleware", **PRODUCTION)
    assert "GET / -> 200" in output
    assert "No metrics" not in output


def test_folder_that_cannot_be_made_is_refused_in_one_sentence(
    service: Service, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    environment = PRODUCTION | {"PROMETHEUS_MULTIPROC_DIR": str(file)}
    done = finish(COMMAND.split(), service.path, service.environment | environment)
    assert done.returncode == 1
    [line] = done.stdout.splitlines()
    assert line.startswith(
        f"PROMETHEUS_MULTIPROC_DIR='{file}' is refused: use a folder"
    )


# What Prometheus and Grafana read.


def openmetrics() -> list[Metric]:
    text = scrape("application/openmetrics-text; version=1.0.0")
    return [*parse_openmetrics(text)]  # type: ignore[no-untyped-call]


def exposed() -> set[str]:
    return {sample.name for family in parse_text(scrape()) for sample in family.samples}


def dashboard() -> list[str]:
    text = (DEPLOY / "dashboard.json").read_text(encoding="utf-8")
    return [
        target["expr"]
        for panel in json.loads(text)["panels"]
        for target in panel["targets"]
    ]


def alerts() -> list[str]:
    text = (DEPLOY / "alerts.yaml").read_text(encoding="utf-8")
    return [rule["expr"] for rule in yaml.safe_load(text)["groups"][0]["rules"]]


def test_parsers_of_prometheus_read_both_formats(server: Server) -> None:
    families = [*parse_text(scrape()), *openmetrics()]
    types = Counter(family.type for family in families)
    assert types == {"counter": 4, "gauge": 8, "histogram": 4}


def test_dashboard_and_alerts_ask_for_metrics_that_are_there(server: Server) -> None:
    for expression in dashboard() + alerts():
        outer = re.sub(r"\{[^}]*\}|by \([^)]*\)", "", expression)
        names = set(re.findall(r"\b[a-z]\w*_\w+\b(?!\()", outer))
        assert names, expression
        assert names <= exposed(), expression
        for labels in re.findall(r"\{([^}]*)\}|by \(([^)]*)\)", expression):
            for label in re.findall(r"([a-z_]+)(?:[=!,]|$)", ",".join(labels)):
                assert label in (*LABELS, "namespace", "job", "le"), expression


def test_operations_document_names_each_metric(server: Server) -> None:
    text = (TREE / "docs" / "operations.md").read_text(encoding="utf-8")
    families = {family.name for family in openmetrics()}
    rows = re.findall(r"^\| (`[a-z_]+_[a-z_]+`.*?) \| ", text, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert families <= {name.removesuffix("_total") for name in named}


def test_operations_document_says_where_to_look_after_each_alert() -> None:
    text = (TREE / "docs" / "operations.md").read_text(encoding="utf-8")
    [group] = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"]
    names = [rule["alert"] for rule in group["rules"]]
    assert re.findall(r"^\| `([A-Z]\w+)` \| ", text, re.MULTILINE) == names


@pytest.fixture
def promtool() -> str:
    missing = "no promtool is on the PATH (apt-get install prometheus)"
    return require(shutil.which("promtool"), "PROMTOOL", missing)


def test_promtool_finds_no_fault(server: Server, tmp_path: Path, promtool: str) -> None:
    done = subprocess.run(
        [promtool, "check", "metrics"],
        input=scrape(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    rules = [
        {"record": "panel", "expr": expression.replace("$__rate_interval", "5m")}
        for expression in dashboard()
    ]
    panels = tmp_path / "panels.yaml"
    panels.write_text(yaml.safe_dump({"groups": [{"name": "x", "rules": rules}]}))
    for path in (panels, DEPLOY / "alerts.yaml"):
        succeed([promtool, "check", "rules", path], tmp_path)


def lags(labels: str, quick: str, every: str) -> dict[str, str]:
    """How many samples an instance has each minute, in Prometheus's notation."""
    name = "event_loop_lag_seconds"
    buckets = {"0.1": quick, "5.0": every, "+Inf": every}
    series = {f'{name}_bucket{{{labels}, le="{le}"}}': buckets[le] for le in buckets}
    return {**series, f"{name}_count{{{labels}}}": every}


def test_event_loop_that_is_blocked_is_an_alert(tmp_path: Path, promtool: str) -> None:
    series = {
        **lags('job="healthy"', "0+239x30", "0+240x30"),
        **lags('job="never asked"', "0x30", "0x30"),
        **lags('job="one of many", instance="blocked"', "0+230x30", "0+240x30"),
        **lags('job="one of many", instance="others"', "0+9000x30", "0+9000x30"),
        **lags('job="stopped"', "0+240x9 2160x20", "0+240x9 2160x20"),
    }
    alert = 'alertname="EventLoopBlocked", alertstate="firing"'
    fired = [f'ALERTS{{{alert}, job="{job}"}}' for job in ("one of many", "stopped")]
    test = {
        "interval": "1m",
        "input_series": [{"series": key, "values": series[key]} for key in series],
        "promql_expr_test": [
            {
                "expr": 'ALERTS{alertstate="firing"}',
                "eval_time": "25m",
                "exp_samples": [{"labels": labels, "value": 1} for labels in fired],
            }
        ],
    }
    rules = {"rule_files": [str(DEPLOY / "alerts.yaml")], "tests": [test]}
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump(rules))
    succeed([promtool, "test", "rules", path], tmp_path)
