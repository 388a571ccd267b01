"""The deployment files pass their linters, and are run as far as possible."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import reduce
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.template import interpreters
from tests.template.conftest import Bake
from tests.template.linters import LINTED, lint
from tests.template.prompts import slot
from tests.template.service import Service, finish, free_port, inherited, succeed

# Testing every service with every linter would prove no more than these two do.
ANSWERS = [
    {"deploy": "kubernetes", "ci": "github", "database": "postgresql"}
    | {"django_version": "6.1", "metrics": "prometheus"},
    {"deploy": "kubernetes", "ci": "gitlab", "admin": "false"},
]


@pytest.fixture(
    scope="module",
    params=[pytest.param(a, marks=pytest.mark.xdist_group(slot(a))) for a in ANSWERS],
    ids=["github, postgresql, admin", "gitlab, sqlite, no admin"],
)
def service(request: pytest.FixtureRequest, bake: Bake) -> Service:
    return bake(**request.param)


@pytest.fixture(scope="module")
def installed(service: Service, ready: Bake) -> Service:
    return ready(**service.answers)


# Each is listed twice, as strict and as not strict.
RELEASES = list(dict.fromkeys(kubernetes_validate.utils.all_versions()))


SERVICE_MONITOR = "deploy/base/servicemonitor.yaml"


def documents(service: Service, folder: str = "base") -> dict[str, Any]:
    """By the name of the file, without the one for the Prometheus Operator."""
    files = {*(service.path / "deploy" / folder).glob("*.yaml")}
    files -= {service.path / SERVICE_MONITOR}
    return {f.stem: yaml.safe_load(f.read_text(encoding="utf-8")) for f in files}


def overlaid(service: Service, overlay: str) -> dict[str, Any]:
    """The manifests of the base with the patches, as kustomize applies them."""
    found = documents(service)
    kustomization = documents(service, overlay)["kustomization"]
    assert kustomization["resources"] == ["../base"]
    for patch in kustomization["patches"]:
        [target] = [
            document
            for document in found.values()
            if document["kind"] == patch["target"]["kind"]
            and document["metadata"]["name"] == patch["target"]["name"]
        ]
        for change in yaml.safe_load(patch["patch"]):
            assert change["op"] == "replace"
            *path, last = change["path"].removeprefix("/").split("/")
            parent = reduce(lambda at, key: at[index(key)], path, target)
            # "replace" needs something to be replaced.
            assert parent[index(last)]
            parent[index(last)] = change["value"]
    return found


def index(key: str) -> str | int:
    return int(key) if key.isdigit() else key


def names(text: str) -> set[str]:
    return set(re.findall(r"^#?([A-Z_]+)=", text, re.MULTILINE))


# The environment.


def test_table_of_the_readme_is_the_example_is_the_settings(service: Service) -> None:
    readme = (service.path / "README.md").read_text(encoding="utf-8")
    settings = (service.path / "config" / "settings.py").read_text(encoding="utf-8")
    example = (service.path / ".env.example").read_text(encoding="utf-8")
    read = set(re.findall(r'env\.\w+\(\s*"([A-Z_]+)"', settings))
    assert set(re.findall(r"^\| `([A-Z_]+)` \|", readme, re.MULTILINE)) == read
    assert names(example) == read


def test_defaults_of_the_table_are_those_of_the_settings(service: Service) -> None:
    readme = (service.path / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([A-Z_]+)` \| (?:`(.*?)`|\w+) \|", readme, re.MULTILINE)
    table = {name: default for name, default in rows if default not in ("", "false")}
    settings = (service.path / "config" / "settings.py").read_text(encoding="utf-8")
    assert table == dict(
        re.findall(r'^    "([A-Z_]+)": "(.*)",$', settings, re.MULTILINE)
    )


# Containers.


def test_dockerfile_and_compose_file_are_valid(service: Service) -> None:
    for name in ("Dockerfile", "compose.yaml"):
        for command in LINTED[name]:
            lint(*command, name, cwd=service.path)


def test_compose_file_restarts_all_but_the_migration(service: Service) -> None:
    text = (service.path / "compose.yaml").read_text(encoding="utf-8")
    policies = {
        n: s.get("restart") for n, s in yaml.safe_load(text)["services"].items()
    }
    assert policies.pop("migrate") is None
    assert {*policies.values()} == {"unless-stopped"}


def test_no_secret_of_the_compose_file_has_a_default(service: Service) -> None:
    text = (service.path / "compose.yaml").read_text(encoding="utf-8")
    secrets = re.findall(r"\$\{(\w*(?:KEY|PASSWORD))(.)(.)", text)
    assert secrets
    for name, *default in secrets:
        assert default == [":", "?"], name


def test_service_accepts_the_variables_of_the_compose_file_in_its_dotenv(
    installed: Service, tmp_path: Path
) -> None:
    copy = installed.copy_in_environment(tmp_path / "service")
    text = (copy.path / "compose.yaml").read_text(encoding="utf-8")
    names = set(re.findall(r"\$\{(\w+)", text))
    assert "SECRET_KEY" in names
    values = dict.fromkeys(sorted(names), "127.0.0.1") | {
        "SECRET_KEY": PRODUCTION["SECRET_KEY"]
    }
    dotenv = "".join(f"{name}={value}\n" for name, value in values.items())
    (copy.path / ".env").write_text(dotenv, encoding="utf-8")
    copy.run("uv run --no-sync manage.py check", DEBUG="true")


PRODUCTION = {"SECRET_KEY": "abcdefghij" * 5, "ALLOWED_HOSTS": "127.0.0.1"}
Stage = list[tuple[str, str]]


def stages(dockerfile: str) -> list[Stage]:
    """The instructions of each stage, in the order of the file."""
    text = re.sub(r"^#.*\n", "", dockerfile, flags=re.MULTILINE)
    text = re.sub(r"\\\n\s*", "", text)
    pairs = [line.split(" ", 1) for line in text.splitlines() if line.strip()]
    found: list[Stage] = []
    for instruction, argument in pairs:
        if instruction == "FROM":
            found.append([])
        found[-1].append((instruction, argument))
    return found


class Image:
    """Run a Dockerfile's instructions below a folder, one stage after another.

    Without a container engine, / is that folder, the base image is a virtual
    environment with the same version of Python, and no users are created.
    """

    def __init__(self, root: Path, context: Path, python: str) -> None:
        self.root = root
        self.context = context
        self.python = python
        self.path = root / "usr" / "bin"
        run = [interpreters.UV, "venv", "--quiet", "--seed", "--python", python]
        subprocess.run([*run, root / "usr" / "local"], check=True)
        self.path.mkdir()
        for command in ("useradd", "install"):
            (self.path / command).symlink_to("/bin/true")
        self.environment: dict[str, str] = {}
        self.command: list[str] = []
        self.health: list[str] = []

    def below(self, text: str) -> str:
        return re.sub(r"(?<![\w.}/])/(?=app\b|data\b|media\b)", f"{self.root}/", text)

    def build(self, dockerfile: str) -> None:
        for number, stage in enumerate(stages(dockerfile)):
            if number:
                (self.root / "app").rename(self.root / f"stage{number - 1}")
            # A new environment, and the cache of the machine that builds.
            self.environment = inherited("PIP_CERT", "PIP_INDEX_URL", "UV_INDEX_URL")
            path = [self.root / "usr" / "local" / "bin", self.path, "/usr/bin", "/bin"]
            self.environment["PATH"] = ":".join(map(str, path))
            self.environment["HOME"] = str(self.root)
            # uv does not create a virtual environment from another one.
            self.environment["UV_PYTHON"] = self.python
            self.environment["UV_CACHE_DIR"] = interpreters.uv_cache()
            for instruction, argument in stage:
                getattr(self, f"do_{instruction.lower()}")(self.below(argument))

    def do_from(self, argument: str) -> None:
        self.base = argument
        self.cwd = self.root

    def do_workdir(self, argument: str) -> None:
        self.cwd = Path(argument)
        self.cwd.mkdir(exist_ok=True)

    def do_env(self, argument: str) -> None:
        for pair in argument.split():
            name, value = pair.split("=", 1)
            self.environment[name] = value.replace("$PATH", self.environment["PATH"])

    def do_copy(self, argument: str) -> None:
        *sources, target = argument.split()
        if sources[0] == "--from=build":
            shutil.copytree(
                self.root / "stage0", target, symlinks=True, dirs_exist_ok=True
            )
            return
        for pattern in sources:
            # Docker copies the files in a folder, not the folder itself.
            base = self.context / pattern
            if base.is_dir():
                paths = base.rglob("*")
            else:
                base, paths = self.context, self.context.glob(pattern)
            for path in sorted(paths):
                if path.is_file() and not self.ignored(path.relative_to(self.context)):
                    copy = self.cwd / target / path.relative_to(base)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, copy)

    def ignored(self, name: Path) -> bool:
        rules = (self.context / ".dockerignore").read_text().split()
        folders = [name, *name.parents]
        return any(
            fnmatch(str(folder), rule)
            or (rule[:3] == "**/" and folder.name == rule[3:])
            for folder in folders
            for rule in rules
        )

    def do_run(self, argument: str) -> None:
        self.run(["/bin/sh", "-c", argument])

    def run(self, command: list[str], **environment: str) -> None:
        succeed(command, self.cwd, self.environment | environment)

    def do_user(self, argument: str) -> None:
        self.user = argument

    def do_expose(self, argument: str) -> None:
        self.port = argument

    def do_cmd(self, argument: str) -> None:
        # A shell as the first process would not pass on SIGTERM.
        self.command = json.loads(argument)

    def do_healthcheck(self, argument: str) -> None:
        self.health = json.loads(argument.partition("CMD ")[2])


@pytest.fixture(scope="module")
def image(bake: Bake, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """With static files; the Dockerfile for a service without them has one step less."""
    service = bake(**ANSWERS[0])
    copy = service.copy(tmp_path_factory.mktemp("context"))
    copy.run("uv lock")
    context = copy.path
    # From an app that the team has added.
    (context / "orders").mkdir()
    (context / "orders" / "views.py").touch()
    # By a person with umask 077.
    for path in [context, *context.rglob("*")]:
        path.chmod(path.stat().st_mode & 0o700)
    # In an image no path has blanks.
    root = Path(tempfile.mkdtemp())
    image = Image(root, context, service.environment["UV_PYTHON"])
    image.build((context / "Dockerfile").read_text(encoding="utf-8"))
    yield image
    shutil.rmtree(root)


@pytest.mark.xdist_group("image")
def test_image_holds_no_secret_no_tests_no_tools(image: Image) -> None:
    app = image.root / "app"
    assert not [path.name for path in app.glob(".env*")]
    assert not (app / "tests").exists()
    assert {"uvicorn"} == {
        name
        for name in ("uv", "pip", "pytest", "mypy", "ruff", "uvicorn")
        if (app / ".venv" / "bin" / name).exists()
    }
    assert image.user == "10001"


@pytest.mark.xdist_group("image")
def test_user_of_the_image_may_read_everything_in_it(image: Image) -> None:
    app = image.root / "app"
    others = {path: path.stat().st_mode & 0o005 for path in app.rglob("*")}
    assert [p for p, mode in others.items() if mode & 4 == 0] == []
    assert [p for p, mode in others.items() if p.is_dir() and mode & 1 == 0] == []


@pytest.mark.xdist_group("image")
def test_everything_in_the_image_is_compiled(image: Image) -> None:
    app = image.root / "app"
    # What is installed from it is compiled.
    sources = {*app.rglob("*.py")} - {*(app / "vendor").rglob("*.py")}
    assert app / "orders" / "views.py" in sources
    compiled = [
        path
        for path in sources
        if list(path.parent.glob(f"__pycache__/{path.stem}.*.pyc"))
    ]
    # Some packages contain files for an older Python, which cannot be compiled.
    assert len(compiled) > 0.99 * len(sources)
    assert {p for p in sources if ".venv" not in p.parts} <= {*compiled}


@pytest.mark.xdist_group("image")
def test_command_serves_is_healthy_and_ends_on_sigterm(
    image: Image, tmp_path: Path
) -> None:
    port = str(free_port())
    command = [part.replace("0.0.0.0", "127.0.0.1") for part in image.command]
    served = Service(image.cwd, {})
    with served.start(
        [part.replace(image.port, port) for part in command],
        int(port),
        image.environment | PRODUCTION | {"DATABASE_URL": "sqlite:///x.sqlite3"},
    ) as server:
        answer = server.get("/hello/you/")
        assert answer.body == '{"hello": "you"}'
        assert "server" not in answer.headers
        image.run([part.replace(image.port, port) for part in image.health])
    assert server.process.returncode == 0 or server.process.returncode == -15
    assert "Finished server process" in server.log.read_text()


# Kubernetes.


@pytest.mark.parametrize("version", RELEASES[-3:])
def test_manifests_are_valid_strictly(service: Service, version: str) -> None:
    for name, document in documents(service).items():
        if name != "kustomization":
            kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("overlay", ["staging", "production"])
def test_overlays_are_valid_and_differ_in_host_and_namespace(
    service: Service, overlay: str
) -> None:
    found = overlaid(service, overlay)
    kustomization = found.pop("kustomization")
    for document in found.values():
        kubernetes_validate.validate(document, RELEASES[-1], strict=True)
    host = "staging.example.com" if overlay == "staging" else "example.com"
    settings = found["configmap"]["data"]
    assert settings["ALLOWED_HOSTS"] == host
    assert settings["CSRF_TRUSTED_ORIGINS"] == f"https://{host}"
    ingress = found["ingress"]["spec"]
    assert [rule["host"] for rule in ingress["rules"]] == [host]
    assert [tls["hosts"] for tls in ingress["tls"]] == [[host]]
    assert documents(service, overlay)["kustomization"]["namespace"] == overlay
    assert "namespace" not in kustomization


@pytest.mark.parametrize("overlay", ["staging", "production"])
def test_an_image_is_deployed_by_its_digest_and_never_by_a_tag(
    service: Service, overlay: str
) -> None:
    found = documents(service)
    [image] = documents(service, overlay)["kustomization"]["images"]
    assert re.fullmatch("sha256:[0-9a-f]{64}", image["digest"])
    assert "newTag" not in image
    for workload in (found["deployment"], found["migrate"]):
        [container] = workload["spec"]["template"]["spec"]["containers"]
        # Without a tag or digest here: if no overlay names one, "latest" is pulled.
        assert container["image"] == image["name"]


def test_kustomization_lists_every_manifest(service: Service) -> None:
    found = documents(service)
    listed = found.pop("kustomization")["resources"]
    assert sorted(listed) == sorted(f"{name}.yaml" for name in found)


def test_pods_get_each_variable_of_the_example_and_no_other(service: Service) -> None:
    found = documents(service)
    config = found["configmap"]
    example = names((service.path / ".env.example").read_text(encoding="utf-8"))
    secrets = {"SECRET_KEY", "DATABASE_URL", "CACHE_URL", "EMAIL_URL"}
    for workload in (found["deployment"], found["migrate"]):
        [container] = workload["spec"]["template"]["spec"]["containers"]
        sources = [next(iter(source.items())) for source in container["envFrom"]]
        name = {"name": config["metadata"]["name"]}
        assert sources == [("configMapRef", name), ("secretRef", name)]
        assert {*config["data"]} == example - secrets


def test_deploy_check_warns_of_nothing_with_the_config_map(installed: Service) -> None:
    service = installed
    config = documents(service)["configmap"]["data"]
    key = {"SECRET_KEY": "".join(map(str, range(40)))}
    url = {"DATABASE_URL": "postgresql://me@database/shop"}
    if "collectstatic" in str(steps(service)):
        service.run("uv run manage.py collectstatic --noinput", **config, **key, **url)
    service.run(CHECK, **config, **key, **url)


def test_pod_outlives_its_servers_graceful_shutdown(service: Service) -> None:
    pod = documents(service)["deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    [command] = re.findall(
        r"^CMD (.*)$", (service.path / "Dockerfile").read_text(), re.MULTILINE
    )
    graceful = int(json.loads(command)[-1])
    assert before + graceful < pod["terminationGracePeriodSeconds"]
    assert graceful < 10


def test_probes_and_services_name_what_is_there(service: Service) -> None:
    found = documents(service)
    template = found["deployment"]["spec"]["template"]
    [container] = template["spec"]["containers"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    labels = template["metadata"]["labels"].items()
    assert found["service"]["spec"]["selector"].items() <= labels
    disruption = found["poddisruptionbudget"]["spec"]["selector"]["matchLabels"]
    assert disruption.items() <= labels
    for spread in template["spec"]["topologySpreadConstraints"]:
        assert spread["labelSelector"]["matchLabels"].items() <= labels
    [rule] = found["ingress"]["spec"]["rules"]
    [route] = rule["http"]["paths"]
    assert route["backend"]["service"]["name"] == found["service"]["metadata"]["name"]
    [port] = found["service"]["spec"]["ports"]
    assert route["backend"]["service"]["port"]["name"] == port["name"]
    target = found["horizontalpodautoscaler"]["spec"]["scaleTargetRef"]["name"]
    assert target == found["deployment"]["metadata"]["name"]


def test_metrics_have_a_port_and_a_service_of_their_own(bake: Bake) -> None:
    service = bake(**ANSWERS[0])
    found = documents(service)
    template = found["deployment"]["spec"]["template"]
    [container] = template["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    number = str(ports["metrics"])
    assert template["metadata"]["annotations"] == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": number,
    }
    assert found["configmap"]["data"]["METRICS_PORT"] == number
    [service_port] = found["service"]["spec"]["ports"]
    assert service_port["targetPort"] == "http"
    optional = "\n  # - servicemonitor.yaml\n"
    assert optional in (service.path / "deploy/base/kustomization.yaml").read_text()
    manifests = (service.path / SERVICE_MONITOR).read_text(encoding="utf-8")
    metrics, monitor = yaml.safe_load_all(manifests)
    kubernetes_validate.validate(metrics, RELEASES[-1], strict=True)
    assert metrics["spec"] == {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": template["metadata"]["labels"],
        "ports": [{"name": "metrics", "port": int(number), "targetPort": "metrics"}],
    }
    assert (monitor["apiVersion"], monitor["kind"]) == (
        "monitoring.coreos.com/v1",
        "ServiceMonitor",
    )
    [added] = found["kustomization"]["labels"]
    assert monitor["spec"] == {
        "jobLabel": "app.kubernetes.io/name",
        "selector": {"matchLabels": metrics["metadata"]["labels"] | added["pairs"]},
        "endpoints": [{"port": "metrics"}],
    }
    # Or the ServiceMonitor would select both Services.
    assert "labels" not in found["service"]["metadata"]


# Continuous integration and pre-commit.

CHECK = "uv run manage.py check --deploy --fail-level WARNING"


def pipeline(service: Service) -> dict[str, Any]:
    github = service.answers["ci"] == "github"
    file = ".github/workflows/ci.yml" if github else ".gitlab-ci.yml"
    text = (service.path / file).read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def steps(service: Service) -> list[tuple[str, dict[str, str]]]:
    """Each command of the pipeline before it builds the image, with its environment."""
    found = pipeline(service)
    if service.answers["ci"] == "github":
        job = found["jobs"]["test"]
        return [
            (step["run"], job["env"] | step.get("env", {}))
            for step in job["steps"]
            if "run" in step
        ]
    common: list[tuple[str, dict[str, str]]]
    common = [(c, {}) for c in found["default"]["before_script"]]
    return common + [
        (command, found["variables"] | job.get("variables", {}))
        for job in (found["test"], found["deploy-check"])
        for command in job["script"]
    ]


def test_pipeline_is_valid(service: Service) -> None:
    github = service.answers["ci"] == "github"
    file = ".github/workflows/ci.yml" if github else ".gitlab-ci.yml"
    for command in LINTED[Path(file).name]:
        lint(*command, file, cwd=service.path)


def test_each_step_is_a_documented_command(service: Service) -> None:
    text = "".join(service.documents().values())
    for command, _ in steps(service):
        assert f"    {command}\n" in text or f"`{command}`" in text


def test_deploy_check_of_the_pipeline_has_the_environment_of_the_readme(
    service: Service,
) -> None:
    documented = service.readme_environment()
    [environment] = [env for command, env in steps(service) if command == CHECK]
    assert environment.keys() == documented.keys()
    secret = {"SECRET_KEY": documented["SECRET_KEY"]}
    assert environment | secret == documented


def test_both_pipelines_run_the_same_commands(bake: Bake) -> None:
    github, gitlab = (bake(**ANSWERS[0] | {"ci": ci}) for ci in ("github", "gitlab"))
    assert [c for c, _ in own_commands(github)] == [c for c, _ in own_commands(gitlab)]
    assert image_commands(github)[:2] == image_commands(gitlab)[:2]


def own_commands(service: Service) -> list[tuple[str, dict[str, str]]]:
    """Those that do not depend on the pipeline's machine."""
    return [step for step in steps(service) if step[0].startswith("uv run")]


def image_commands(service: Service) -> list[str]:
    found = pipeline(service)
    if service.answers["ci"] == "github":
        steps = found["jobs"]["image"]["steps"]
        return [step["run"] for step in steps if "run" in step]
    commands: list[str] = found["image-build"]["script"]
    return commands


def test_image_is_scanned_by_a_pinned_scanner_before_it_is_pushed(
    service: Service,
) -> None:
    build, scan, push = image_commands(service)
    assert re.fullmatch("docker build .*--tag image .", build)
    scanner = r"anchore/grype:v[\d.]+@sha256:[0-9a-f]{64}"
    assert re.search(rf" {scanner} docker:image .*--fail-on ", scan)
    assert "docker tag image" in push and ".RepoDigests" in push
    assert "docker push" in push
    assert "latest" not in push


def test_development_docker_and_ci_use_the_oldest_python_that_is_allowed(
    service: Service,
) -> None:
    project = tomllib.loads((service.path / "pyproject.toml").read_text())["project"]
    oldest = project["requires-python"].removeprefix(">=")
    assert (service.path / ".python-version").read_text() == f"{oldest}\n"
    dockerfile = (service.path / "Dockerfile").read_text()
    images = re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)
    assert {*images} == {f"python:{oldest}-slim"}
    found = pipeline(service)
    if service.answers["ci"] == "github":
        # uv reads the file.
        assert "UV_PYTHON" not in str(found["jobs"]["test"])
    else:
        assert found["default"]["image"] == f"python:{oldest}"


VERSION = "import sys; print(*sys.version_info[:2], sep='.')"


@pytest.mark.parametrize("newest", [False, True])
def test_service_uses_another_python_once_it_is_pinned(
    service: Service, tmp_path: Path, newest: bool
) -> None:
    copy = service.copy(tmp_path / "service")
    python = Path(interpreters.find("3.12", newest))
    only = {
        "PATH": f"{interpreters.uv_folder()}{os.pathsep}{python.parent}",
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_PYTHON_INSTALL_DIR": str(tmp_path),
    }
    version = succeed([python, "-c", VERSION], copy.path).strip()
    pinned = (copy.path / ".python-version").read_text().strip()
    find = ["uv", "python", "find", "--system"]
    assert "`uv python pin " in service.documents()["README.md"]
    if version != pinned:
        refused = finish(find, copy.path, only)
        assert f"No interpreter found for Python {pinned}" in refused.stdout
    succeed(["uv", "python", "pin", version], copy.path, only)
    found = succeed(find, copy.path, only)
    assert Path(found.strip()).parent == python.parent


@pytest.mark.xdist_group(slot(ANSWERS[0]))
def test_first_commit_passes_its_own_pipeline(install: Bake) -> None:
    committed = install(**ANSWERS[0])
    for file in (".env", "uv.lock"):
        (committed.path / file).unlink()
    locked = finish(["uv", "sync", "--locked"], committed.path, committed.environment)
    assert "run `uv lock`" in locked.stdout
    committed.run("uv lock")
    committed.run("uv sync --locked")
    for command, environment in own_commands(committed):
        committed.run(command, **environment)
    pre_commit = Path(sys.executable).with_name("pre-commit")
    for command in ("git init -q", "git add -A", f"{pre_commit} run --all-files"):
        committed.run(command)


@pytest.mark.parametrize(
    ("variable", "warning"),
    [
        ("SECURE_SSL_REDIRECT", "security.W008"),
        ("SECURE_HSTS_SECONDS", "security.W004"),
        ("SECURE_HSTS_INCLUDE_SUBDOMAINS", "security.W005"),
        ("SECURE_HSTS_PRELOAD", "security.W021"),
        ("ALLOWED_HOSTS", "security.W020"),
    ],
)
def test_deploy_check_warns_without(
    installed: Service, variable: str, warning: str
) -> None:
    [environment] = [env for command, env in steps(installed) if command == CHECK]
    with pytest.raises(AssertionError, match=re.escape(warning)):
        installed.run(CHECK, **environment | {variable: ""})


# Changes that the README describes.


OTHERS = [("tests/settings.py", "METRICS_PORT"), (".env.example", "METRICS_PORT")]


CHANGED = {"admin": "false", "api": "ninja", "deploy": "none", "metrics": "prometheus"}


@pytest.mark.xdist_group(slot(CHANGED))
def test_service_passes_after_the_documented_deletions_and_additions(
    install: Bake,
) -> None:
    service = install(**CHANGED)
    [greeting] = [c for c in service.python_examples() if "class Greeting" in c]
    (service.path / "home" / "middleware.py").write_text(greeting, encoding="utf-8")
    last = '    "django.middleware.clickjacking.XFrameOptionsMiddleware",\n'
    added = f'{last}    "home.middleware.GreetingMiddleware",\n'
    settings = "config/settings.py"
    service.replace(settings, '    "serving.middleware.HeaderMiddleware",\n', "")
    service.replace(settings, '    "serving.middleware.deadline",\n', "")
    service.replace(settings, '    "serving.health.probes",\n', "")
    service.replace(settings, last, added)
    metrics = '"serving.metrics.MetricsMiddleware"'
    service.replace(settings, metrics, '"serving.middleware.TimingMiddleware"')
    service.replace(settings, '    "METRICS_PORT": "9464",\n', "")
    for file, variable in ((settings, "PORT|METRICS_PORT"), *OTHERS):
        text = (service.path / file).read_text(encoding="utf-8")
        text = re.sub(rf"(?m)^#?({variable}) ?=.*\n", "", text)
        (service.path / file).write_text(text, encoding="utf-8")
    service.replace("pyproject.toml", '    "prometheus-client>=0.26,<1",\n', "")
    (service.path / "serving" / "metrics.py").unlink()
    for folder in ("deploy", "docs"):
        shutil.rmtree(service.path / folder)
    service.replace("config/urls.py", '    path("", include("home.urls")),\n', "")
    for name in ("header", "deadline", "health", "home", "metrics"):
        (service.path / "tests" / f"test_{name}.py").unlink()
    delete_error_pages(service)
    for name in ("views.py", "urls.py", "templates/home/index.html"):
        (service.path / "home" / name).unlink()
    for command in ("ruff check --fix .", "mypy .", "manage.py check", "pytest"):
        service.run(f"uv run {command}")


def delete_error_pages(service: Service) -> None:
    readme = (service.path / "README.md").read_text(encoding="utf-8")
    [row] = re.findall(r"^\| the error pages \|.*", readme, re.MULTILINE)
    shutil.rmtree(service.path / "serving" / "templates")
    for file in ("serving/errors.py", "tests/test_errors.py"):
        (service.path / file).unlink()
    settings, middleware = "config/settings.py", "serving/middleware.py"
    for file in ("config/urls.py", middleware, "home/api.py"):
        service.replace(file, "from serving.errors import error_response\n", "")
    view = 'if not DEBUG:\n    CSRF_FAILURE_VIEW = "serving.errors.csrf_failure"\n'
    service.replace(settings, view, "")
    service.replace(settings, '    "home.api.method_not_allowed",\n', "")
    plain = "HttpResponse(status=504)"
    service.replace(middleware, "error_response(request, status=504)", plain)
    http = "from django.http import HttpRequest"
    service.replace(middleware, f"{http}\n", f"{http}, HttpResponse\n")
    for file, deleted in {
        "config/urls.py": r"# 503[\s\S]+",
        "home/api.py": r"# Errors[\s\S]+(?=urlpatterns)",
        "tests/test_api.py": r"\n\n@pytest.mark.parametrize[^@]+\Z",
    }.items():
        assert f"`{file}`" in row
        path = service.path / file
        text, count = re.subn(deleted, "", path.read_text(encoding="utf-8"))
        assert count == 1, file
        path.write_text(text, encoding="utf-8")


@pytest.mark.xdist_group(slot({}))
def test_readme_leads_back_to_stock_django(install: Bake) -> None:
    service = install()
    service.replace("config/asgi.py", "from onloop.asgi", "from django.core.asgi")
    service.replace("config/settings.py", '    "onloop",\n', "")
    service.run("uv run manage.py migrate")
    assert "uvicorn" not in service.run("uv run manage.py help runserver")
    [command] = [c for c in service.readme_commands() if "uvicorn" in c]
    with service.serve(command, ALLOWED_HOSTS="127.0.0.1") as server:
        for page in ("/", "/hello/you/", "/admin/login/", "/livez", "/readyz"):
            answer = server.get(page)
            assert answer.status == 200, page
            assert answer.headers["x-status"] == "OK"
            assert answer.headers["x-request-id"]
