"""Every pair of choices: generated, linted, typed, tested, served."""

import html
import itertools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.template.conftest import Bake
from tests.template.linters import parse
from tests.template.prompts import (
    COMBINATIONS,
    DEFAULTS,
    VARIED,
    combination,
    name,
    slot,
)
from tests.template.service import TREE, Server, Service, finish, free_port

FILES = {
    ".cookiecutter.json",
    ".env",
    ".env.example",
    ".gitignore",
    ".pre-commit-config.yaml",
    ".python-version",
    "README.md",
    "config/__init__.py",
    "config/app_template/__init__.py-tpl",
    "config/app_template/migrations/__init__.py-tpl",
    "config/app_template/models.py-tpl",
    "config/app_template/tests.py-tpl",
    "config/app_template/urls.py-tpl",
    "config/app_template/views.py-tpl",
    "config/asgi.py",
    "config/backends.py",
    "config/environment.py",
    "config/logging.json",
    "config/settings.py",
    "config/urls.py",
    "docs/development.md",
    "docs/operations.md",
    "home/__init__.py",
    "home/templates/home/icon.svg",
    "home/templates/home/index.html",
    "home/urls.py",
    "home/views.py",
    "manage.py",
    "pyproject.toml",
    "serving/__init__.py",
    "serving/apps.py",
    "serving/errors.py",
    "serving/header.py",
    "serving/health.py",
    "serving/management/__init__.py",
    "serving/management/commands/__init__.py",
    "serving/management/commands/startapp.py",
    "serving/middleware.py",
    "serving/templates/serving/error.html",
    "tests/__init__.py",
    "tests/conftest.py",
    "tests/pages.py",
    "tests/settings.py",
    "tests/test_checks.py",
    "tests/test_database.py",
    "tests/test_deadline.py",
    "tests/test_environment.py",
    "tests/test_errors.py",
    "tests/test_header.py",
    "tests/test_health.py",
    "tests/test_home.py",
    "tests/test_log.py",
    "tests/test_mail.py",
    "tests/test_server.py",
    "vendor/onloop/CHANGELOG.md",
    "vendor/onloop/LICENSE",
    "vendor/onloop/README.md",
    "vendor/onloop/panel-dark.webp",
    "vendor/onloop/panel-light.webp",
    "vendor/onloop/pyproject.toml",
    "vendor/onloop/src/onloop/__init__.py",
    "vendor/onloop/src/onloop/_blocking.py",
    "vendor/onloop/src/onloop/_chain.py",
    "vendor/onloop/src/onloop/_compat.py",
    "vendor/onloop/src/onloop/_hops.py",
    "vendor/onloop/src/onloop/_isolation.py",
    "vendor/onloop/src/onloop/_source.py",
    "vendor/onloop/src/onloop/apps.py",
    "vendor/onloop/src/onloop/asgi.py",
    "vendor/onloop/src/onloop/checks.py",
    "vendor/onloop/src/onloop/handler.py",
    "vendor/onloop/src/onloop/health.py",
    "vendor/onloop/src/onloop/inlining.py",
    "vendor/onloop/src/onloop/logging/__init__.py",
    "vendor/onloop/src/onloop/logging/formatter.py",
    "vendor/onloop/src/onloop/logging/queue.py",
    "vendor/onloop/src/onloop/management/__init__.py",
    "vendor/onloop/src/onloop/management/commands/__init__.py",
    "vendor/onloop/src/onloop/management/commands/middleware.py",
    "vendor/onloop/src/onloop/management/commands/runserver.py",
    "vendor/onloop/src/onloop/measure.py",
    "vendor/onloop/src/onloop/outcome.py",
    "vendor/onloop/src/onloop/panel/__init__.py",
    "vendor/onloop/src/onloop/panel/panel.css",
    "vendor/onloop/src/onloop/panel/panel.html",
    "vendor/onloop/src/onloop/panel/panel.js",
    "vendor/onloop/src/onloop/panel/panel.svg",
    "vendor/onloop/src/onloop/panel/recorder.py",
    "vendor/onloop/src/onloop/panel/urls.py",
    "vendor/onloop/src/onloop/py.typed",
    "vendor/onloop/src/onloop/pytest_plugin.py",
    "vendor/onloop/src/onloop/server_timing.py",
    "vendor/onloop/src/onloop/threads.py",
}
DOCKER = {"Dockerfile", ".dockerignore", "compose.yaml"}
FILES_BY_ANSWER = {
    ("admin", "true"): {
        "config/admin.py",
        "tests/test_users.py",
        "users/__init__.py",
        "users/admin.py",
        "users/migrations/0001_initial.py",
        "users/migrations/__init__.py",
        "users/models.py",
    },
    ("api", "ninja"): {
        "home/api.py",
        "home/migrations/0001_initial.py",
        "home/migrations/__init__.py",
        "home/models.py",
        "tests/test_api.py",
    },
    ("database", "postgresql"): {
        "config/postgresql/__init__.py",
        "config/postgresql/base.py",
    },
    ("metrics", "prometheus"): {
        "deploy/alerts.yaml",
        "deploy/dashboard.json",
        "serving/metrics.py",
        "tests/test_metrics.py",
    },
    ("deploy", "docker"): DOCKER,
    ("deploy", "kubernetes"): DOCKER
    | {
        "deploy/base/configmap.yaml",
        "deploy/base/deployment.yaml",
        "deploy/base/horizontalpodautoscaler.yaml",
        "deploy/base/ingress.yaml",
        "deploy/base/kustomization.yaml",
        "deploy/base/migrate.yaml",
        "deploy/base/poddisruptionbudget.yaml",
        "deploy/base/service.yaml",
        "deploy/production/kustomization.yaml",
        "deploy/staging/kustomization.yaml",
    },
    ("ci", "github"): {".github/workflows/ci.yml"},
    ("ci", "gitlab"): {".gitlab-ci.yml"},
}
# Rows for what depends on little else: an app, a database server, and static files.
WITH_APP = [*{slot(row): DEFAULTS | row for row in reversed(COMBINATIONS)}.values()]
POSTGRESQL = combination(database="postgresql")
STATIC = combination(admin="false", api="ninja")
# The requested statuses that have the response header.
CARRYING = {
    "status-200": {200},
    "success": {200},
    "always": {200, 404},
    "never": set(),
}
# The files that a page loads, as named by collectstatic. The UI loads no others.
ASSETS = {
    "/admin/login/": r"/static/admin/css/login\.\w+\.css",
    "/api/docs": r".+",
}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(answers, marks=pytest.mark.xdist_group(slot(answers)))
        for answers in COMBINATIONS
    ],
    ids=[name(answers) for answers in COMBINATIONS],
)
def generated(request: pytest.FixtureRequest, bake: Bake) -> Service:
    return bake(**request.param)


@pytest.fixture(scope="module")
def service(generated: Service, install: Bake) -> Service:
    return install(**generated.answers)


def test_every_pair_of_choices_is_baked() -> None:
    for (one, its), (other, theirs) in itertools.combinations(VARIED.items(), 2):
        for pair in itertools.product(its, theirs):
            found = ((row.get(one), row.get(other)) for row in COMBINATIONS)
            assert pair in found, f"add it to CHOSEN: {one}, {other} = {pair}"


def files_of(answers: dict[str, str]) -> set[str]:
    expected = FILES.union(
        *(
            files
            for (prompt, answer), files in FILES_BY_ANSWER.items()
            if answers[prompt] == answer
        )
    )
    if {"prometheus", "kubernetes"} <= {*answers.values()}:
        expected.add("deploy/base/servicemonitor.yaml")
    return expected


def test_files_are_exactly_those_of_the_answers(generated: Service) -> None:
    expected = files_of(generated.answers)
    assert generated.files() == expected
    folders = {Path(file).parts[0] for file in expected}
    assert (generated.path / "deploy").exists() == ("deploy" in folders)


def test_every_file_is_rendered_and_parses_or_is_copied(generated: Service) -> None:
    for file in generated.files():
        data = (generated.path / file).read_bytes()
        if file.startswith("vendor/") or file.endswith("-tpl"):
            assert data == (TREE / file).read_bytes()
        else:
            parse(file, data.decode())


def test_readme_is_short(service: Service) -> None:
    assert len(service.documents()["README.md"].splitlines()) <= 120


def test_links_of_the_documents_lead_somewhere(service: Service) -> None:
    documents = service.documents()
    for source, text in documents.items():
        for link in re.findall(r"\]\((?!https?:)(.*?)\)", text):
            name, _, anchor = link.partition("#")
            target = service.path / source
            target = target.parent / name if name else target
            assert target.is_file(), f"{link} in {source}"
            titles = re.findall(r"^#+ (.*)", target.read_text("utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", t).lower() for t in titles}
            assert anchor.replace("-", " ") in {"", *anchors}, f"{link} in {source}"
    for source in documents.keys() - {"README.md"}:
        assert f"]({source})" in documents["README.md"]


def test_readme_says_which_files_to_delete(service: Service) -> None:
    readme = service.documents()["README.md"]
    *_, deleted = readme.partition("## Delete")
    document = service.documents()["docs/development.md"]
    postgresql = "".join(re.findall(r"(?ms)^## PostgreSQL$.*?^## ", document))
    deleted += postgresql
    path = r"`((?:[\w.-]+/)+(?:[\w-]+\.\w+)?|\.?[\w-]+\.ya?ml)`"
    named = re.findall(path, readme)
    for file in {*named} - {".postgresql/"}:
        assert (service.path / file).exists(), file
    named = re.findall(path, deleted)
    for (prompt, answer), files in FILES_BY_ANSWER.items():
        if service.answers[prompt] == answer:
            for file in files - {"Dockerfile", ".dockerignore"}:
                assert file.startswith(tuple(named)), file
    assert "docs/" in named
    named = ["docs/", *re.findall(r"`(.*?)`", postgresql)]
    for file in service.files() if postgresql else ():
        if b"embedded://" in (service.path / file).read_bytes():
            assert file.startswith(tuple(named)), file


@pytest.fixture(scope="module")
def with_app(service: Service) -> Service:
    """In the first service of a slot, startapp made an app, which nothing includes yet."""
    if service.answers in WITH_APP:
        service.run("uv run manage.py startapp orders")
    return service


def test_lints(with_app: Service) -> None:
    with_app.run("uv run ruff check .")
    with_app.run("uv run ruff format --check .")


def test_types(with_app: Service) -> None:
    with_app.run("uv run mypy .")


@pytest.fixture(scope="module")
def database(service: Service, request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment that names the database; empty for SQLite, the default."""
    if service.answers["database"] == "sqlite":
        return {}
    return {"DATABASE_URL": request.getfixturevalue("new_database")()}


def test_own_tests_pass(with_app: Service, database: dict[str, str]) -> None:
    if with_app.answers["admin"] == "true":
        # These start a PostgreSQL of their own; the others use the one that runs.
        database = {}
    output = with_app.run("uv run pytest", **database)
    assert ("orders/tests.py . " in output) == (with_app.answers in WITH_APP)
    assert re.search(r"\d+ passed in", output)
    assert not re.search(r"\d+ (skipped|deselected|xfailed)", output)


QUERY = """\
import pytest
from django.db import connection


@pytest.mark.django_db
def test_database_answers() -> None:
    connection.cursor().execute("SELECT 1")
"""


def test_tests_of_an_app_alone_have_the_database_too(with_app: Service) -> None:
    if with_app.answers == POSTGRESQL:
        (with_app.path / "home" / "test_query.py").write_text(QUERY)
        assert " 1 passed in " in with_app.run("uv run pytest home/test_query.py")


def test_migrates_with_nothing_left_to_make(
    service: Service, database: dict[str, str]
) -> None:
    service.run("uv run manage.py migrate", **database)
    service.run("uv run manage.py makemigrations --check --dry-run", **database)


def test_deploy_check_warns_of_nothing_in_the_documented_environment(
    service: Service, tmp_path_factory: pytest.TempPathFactory
) -> None:
    [command] = [c for c in service.readme_commands() if "--deploy" in c]
    documented = service.readme_environment() | {"DEBUG": ""}
    environment = documented | {"SECRET_KEY": str(list(range(40)))}
    if service.answers == STATIC:
        done = finish(command.split(), service.path, service.environment | environment)
        assert done.returncode
        assert "onloop.W004) collectstatic has not run" in done.stdout
    if service.answers["admin"] == "true" or service.answers["api"] == "ninja":
        # The same files for each service of a slot with the same API.
        same = tmp_path_factory.getbasetemp() / (
            f"static-{slot(service.answers)}-{service.answers['api']}"
        )
        if same.exists():
            shutil.copytree(same, service.path / "staticfiles")
        else:
            service.run("uv run manage.py collectstatic --noinput", **environment)
            shutil.copytree(service.path / "staticfiles", same)
    service.run(command, **environment)


def test_served_by_the_documented_command(
    service: Service, database: dict[str, str]
) -> None:
    production = {
        "SECRET_KEY": "abcdefghij" * 5,
        "ALLOWED_HOSTS": "127.0.0.1",
        "DEBUG": "",
        "LOG_LEVEL": "DEBUG",
        "METRICS_PORT": str(free_port()),
    }
    [command] = [c for c in service.readme_commands() if "uvicorn" in c]
    with service.serve(command, **production, **database) as server:
        metrics = replace(server, port=int(production["METRICS_PORT"]))
        has_metrics = service.answers["metrics"] == "prometheus"
        if has_metrics:
            metrics.wait_for(metrics.listens)
            assert "\nrequest_threads_limit 40.0\n" in metrics.get("/metrics").body
        requests = served(service, server)
        if has_metrics:
            text = metrics.get("/metrics").body
            assert 'http_route="/hello/<str:name>/",outcome="completed"} 1.0' in text
        ready = server.get("/readyz")
        assert ready.status == 200, ready.body
    check_log(service, server.lines(service.answers["log_format"]), requests)


def served(service: Service, server: Server) -> list[tuple[str, int]]:
    """Request each page; return the path and the status of each request."""
    header, _, value = service.answers["response_header"].partition(": ")
    carrying = CARRYING[service.answers["header_condition"]]
    timing = service.answers["server_timing"] == "always"
    pages = {"/": 200, "/hello/you/": 200, "/nowhere/": 404}
    if service.answers["admin"] == "true":
        pages["/admin/login/"] = 200
    if service.answers["api"] == "ninja":
        pages |= {"/api/docs": 200, "/api/openapi.json": 200, "/api/notes": 200}
    title = html.escape(service.answers["project_name"])
    requests = list(pages.items())
    for path, status in requests:
        answer = server.get(path)
        assert answer.status == status, answer.body
        # It would reveal the server software.
        assert "server" not in answer.headers
        expected = value if status in carrying else None
        assert answer.headers.get(header.lower()) == expected
        assert ("server-timing" in answer.headers) == timing
        if path == "/":
            assert f"<title>{title}</title>" in answer.body
            assert ('href="/admin/"' in answer.body) == ("/admin/login/" in pages)
            assert ('href="/api/docs"' in answer.body) == ("/api/docs" in pages)
        if path == "/admin/login/":
            assert title in answer.body
        if path == "/api/openapi.json":
            info = json.loads(answer.body)["info"]
            assert info["title"] == service.answers["project_name"]
        if files := ASSETS.get(path):
            found = re.findall(r'(?:href|src)="(.*?)"', answer.body)
            assets = [file for file in found if re.fullmatch(files, file)]
            assert assets, found
            requests += [(asset, 200) for asset in assets]
    return requests


def check_log(
    service: Service, lines: list[dict[str, Any]], requests: list[tuple[str, int]]
) -> None:
    timing = [
        line
        for line in lines
        if line["logger"] == "serving.timing" and line["path"] != "/readyz"
    ]
    assert [(line["path"], int(line["status"])) for line in timing] == requests
    for line in lines:
        assert line["service"] == service.answers["project_slug"]
        assert "exception" not in line
    for line in timing:
        assert line["outcome"] == "completed"
        assert float(line["duration"]) > 0
        assert len(line["request_id"]) == 32
