"""A service follows the template with cruft, and a release is one command."""

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from release import PRODUCTS
from tests.template.conftest import Bake
from tests.template.prompts import DEFAULTS, TEXTS
from tests.template.service import TEMPLATE, finish, inherited, succeed, system_path

pytestmark = pytest.mark.xdist_group("updates")
Shell = Callable[[str, Path], str]
Tree = dict[str, bytes]

URL = "https://github.com/org/cookiecutter-async-django"
OLDER = "0.0.9"
SERVICE = "{{cookiecutter.project_slug}}"
ANSWERS = DEFAULTS | TEXTS
# What the owner has beside what is in git.
UNTRACKED = {
    ".env": "SECRET_KEY=mine\n",
    ".venv/pyvenv.cfg": "home = elsewhere\n",
    "db.sqlite3": "rows",
    "media/upload.txt": "uploaded",
}
CHANGED = {"config/settings.py", "home/mine.py", "uv.lock"} | UNTRACKED.keys()
DELETED = ".pre-commit-config.yaml"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("updates")


@pytest.fixture(scope="module")
def shell(home: Path) -> Shell:
    """Of an owner whose `uvx` finds this environment, and git the template below."""
    (home / "bin").mkdir()
    (home / "bin" / "uvx").write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m "$@"\n'
    )
    (home / "bin" / "uvx").chmod(0o755)
    (home / ".gitconfig").write_text(
        f'[url "{home}/tem plate"]\ninsteadOf = {URL}\n'
        "[user]\nname = An Owner\nemail = owner@example.com\n"
    )
    environment = inherited() | {
        "HOME": str(home),
        "PATH": f"{home}/bin{os.pathsep}{system_path()}",
        "GIT_CONFIG_NOSYSTEM": "1",
    }

    def shell(command: str, cwd: Path) -> str:
        return succeed(["bash", "-euo", "pipefail", "-c", command], cwd, environment)

    return shell


@pytest.fixture(scope="module")
def template(home: Path, shell: Shell) -> Path:
    """A git history of the template: an older state, and the one that is tested."""
    template = home / "tem plate"
    listed = shell("git ls-files -z --cached --others --exclude-standard", TEMPLATE)
    newest: Tree = {
        name: (TEMPLATE / name).read_bytes()
        for name in filter(None, listed.split("\0"))
        if (TEMPLATE / name).is_file()
    }
    newest[f"{SERVICE}/vendor/onloop/picture.png"] = bytes(range(256)) * 2
    older = newest | {
        f"{SERVICE}/home/obsolete.py": b"",
        f"{SERVICE}/vendor/onloop/src/onloop/obsolete.py": b"",
        f"{SERVICE}/vendor/onloop/picture.png": bytes(range(255, -1, -1)),
    }
    for name in ("config/settings.py", ".env.example", "vendor/onloop/README.md"):
        older[f"{SERVICE}/{name}"] += b"# Older.\n"
    del older[f"{SERVICE}/tests/test_mail.py"]
    # It asked one question less.
    older = {
        name: re.sub(rb"cookiecutter\.ci\b", b"cookiecutter.__ci", content)
        for name, content in older.items()
    }
    prompts = json.loads(older["cookiecutter.json"])
    del prompts["ci"]
    prompts |= {"__ci": "github", "_template_version": OLDER}
    older["cookiecutter.json"] = json.dumps(prompts).encode()

    shell(f"git init -q {shlex.quote(str(template))}", home)
    for tag, files in ((OLDER, older), ("newest", newest)):
        for path in template.iterdir():
            if path.name != ".git":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name, content in files.items():
            (template / name).parent.mkdir(parents=True, exist_ok=True)
            (template / name).write_bytes(content)
        shell(f"git add -A; git commit -qm {tag}; git tag {tag}", template)
    return template


def tree(service: Path) -> Tree:
    paths = [path.relative_to(service) for path in service.rglob("*")]
    return {
        path.as_posix(): (service / path).read_bytes()
        for path in paths
        if (service / path).is_file() and path.parts[0] not in {".git", ".cruft.json"}
    }


def differing(one: Tree, other: Tree) -> set[str]:
    return {name for name in one | other if one.get(name) != other.get(name)}


def readme_update(service: Path) -> list[str]:
    """The commands, of which the last two are the update."""
    readme = (service / "README.md").read_text(encoding="utf-8")
    section = readme.split("\n## Update\n")[1].split("\n## ")[0]
    return re.findall(r"^    (.*)$", section, re.MULTILINE)


def readme_review(service: Path) -> list[str]:
    """What lists, adds and shows the changes of an update, before the commit."""
    readme = (service / "README.md").read_text(encoding="utf-8")
    return re.findall(r"`(git (?:status|add|diff)\b[^`]*)`", readme)


def readme_line(service: Path, word: str) -> str:
    readme = (service / "README.md").read_text(encoding="utf-8")
    [line] = re.findall(rf"`(uvx cruft [^`]*{re.escape(word)}[^`]*)`", readme)
    return str(line)


def work_on(service: Path, shell: Shell, repository: Path) -> None:
    """The owner's first weeks."""
    shell("git init -q; git add -A; git commit -qm Generated", repository)
    settings = service / "config" / "settings.py"
    settings.write_text(f"# Mine.\n{settings.read_text(encoding='utf-8')}")
    (service / "home" / "mine.py").write_text("")
    (service / DELETED).unlink()
    # An update undoes these, also where the older state differs.
    for name in ("asgi.py", "obsolete.py", "../../picture.png", "../../README.md"):
        path = service / "vendor" / "onloop" / "src" / "onloop" / name
        path.write_bytes(path.read_bytes() + b"Mine.\n")
    (service / "vendor" / "onloop" / "mine.py").write_text("")
    (service / "vendor" / "onloop" / "LICENSE").unlink()
    (service / "uv.lock").write_text("version = 1\n")
    for name, text in UNTRACKED.items():
        (service / name).parent.mkdir(exist_ok=True)
        (service / name).write_text(text)
    shell("git add -A; git commit -qm Mine", service)


@pytest.fixture(scope="module")
def fresh(home: Path, shell: Shell, template: Path) -> Tree:
    """What the newest state generates."""
    answers = " ".join(shlex.quote(f"{k}={v}") for k, v in ANSWERS.items())
    shell(f"uvx cookiecutter --no-input -o fresh 'tem plate' {answers}", home)
    return tree(home / "fresh" / ANSWERS["project_slug"])


@pytest.fixture(scope="module")
def created(home: Path, shell: Shell, template: Path) -> Path:
    """By `cruft create` from the older state, and worked on."""
    (home / "own er").mkdir()
    context = shlex.quote(json.dumps(ANSWERS))
    command = f"uvx cruft create {URL}"
    assert command in (TEMPLATE / "README.md").read_text(encoding="utf-8")
    shell(
        f"{command} --checkout {OLDER} --no-input --extra-context {context}",
        home / "own er",
    )
    service = home / "own er" / ANSWERS["project_slug"]
    work_on(service, shell, service)
    return service


@pytest.fixture(scope="module")
def updated(created: Path, shell: Shell) -> Path:
    """The same, brought to the newest state."""
    service = created.parent / "updated"
    shutil.copytree(created, service)
    shell("\n".join(readme_update(service)[-3:]), service)
    shell("\n".join([*readme_review(service), "git commit -qm Update"]), service)
    return service


def test_check_and_diff_tell_what_is_new_and_what_is_changed(
    created: Path, updated: Path, shell: Shell
) -> None:
    with pytest.raises(AssertionError, match="out of date"):
        shell("uvx cruft check", created)
    assert "up to date" in shell("uvx cruft check", updated)
    difference = shell("uvx cruft diff", updated)
    assert "config/settings.py" in difference
    assert difference.count("diff --git") == 1
    assert "SECRET_KEY" not in difference


def test_update_merges_what_is_new_with_what_the_owner_changed(
    created: Path, updated: Path, fresh: Tree
) -> None:
    old = {"home/obsolete.py", "tests/test_mail.py", "vendor/onloop/picture.png"}
    assert old < differing(tree(created), fresh)
    after = tree(updated)
    assert differing(after, fresh) == CHANGED | {DELETED}
    settings = fresh["config/settings.py"]
    assert after["config/settings.py"] == b"# Mine.\n" + settings
    assert DELETED not in after


def test_new_files_and_rejected_lines_of_an_update_are_listed_and_committed(
    created: Path, tmp_path: Path, shell: Shell
) -> None:
    service = tmp_path / "service"
    shutil.copytree(created, service)
    settings = service / "config" / "settings.py"
    text = settings.read_text(encoding="utf-8").replace("# Older.", "# Mine.")
    settings.write_text(text, encoding="utf-8")
    # Without the generated state in its history, git cannot merge, and cruft rejects.
    shutil.rmtree(service / ".git")
    shell("git init -q; git add -A; git commit -qm Mine", service)
    assert "Good work!" in shell("\n".join(readme_update(service)[-3:]), service)
    listing, *others = readme_review(service)
    rejected = "config/settings.py.rej"
    listed = shell(listing, service).splitlines()
    assert {f"?? {rejected}", "?? tests/test_mail.py"} <= {*listed}
    (service / rejected).unlink()
    shown = shell("\n".join(others), service)
    assert "\n+++ b/tests/test_mail.py\n" in shown
    shell("git commit -qm Update", service)
    assert not shell("git status --porcelain", service)
    assert shell("git ls-files tests/test_mail.py", service)


def test_library_stays_if_the_template_cannot_be_fetched(
    created: Path, tmp_path: Path, shell: Shell
) -> None:
    service = tmp_path / "service"
    shutil.copytree(created, service)
    state = json.loads((service / ".cruft.json").read_text(encoding="utf-8"))
    state["commit"] = "0" * 40
    (service / ".cruft.json").write_text(json.dumps(state, indent=2))
    before = tree(service)
    # As in a terminal, where the next line is entered all the same.
    *_, fetch, replace, _ = readme_update(service)
    shell(f"set +e\n{fetch}\n{replace}\ntrue", service)
    assert tree(service) == before


def test_update_touches_neither_secrets_nor_data(updated: Path) -> None:
    after = tree(updated)
    for name, text in (UNTRACKED | {"uv.lock": "version = 1\n"}).items():
        assert after[name] == text.encode()


def test_plain_service_follows_by_the_commands_of_its_readme(
    home: Path, shell: Shell, fresh: Tree
) -> None:
    answers = " ".join(shlex.quote(f"{k}={v}") for k, v in ANSWERS.items() if k != "ci")
    (home / "plain one").mkdir()
    shell(
        f"uvx cookiecutter --no-input --checkout {OLDER} -o 'plain one' {URL} {answers}",
        home,
    )
    service = home / "plain one" / ANSWERS["project_slug"]
    # One of several in a repository.
    work_on(service, shell, service.parent)
    shell("\n".join(readme_update(service)), service)
    assert differing(tree(service), fresh) == CHANGED | {DELETED}


def test_answer_is_changed_later(updated: Path, tmp_path: Path, shell: Shell) -> None:
    service = tmp_path / "service"
    shutil.copytree(updated, service)
    command = readme_line(service, "--variables-to-update")
    assert '{"admin": false}' in command
    more = '{"admin": false, "metrics": "prometheus"}'
    shell(command.replace('{"admin": false}', more), service)
    after = tree(service)
    assert {"users/models.py", "config/admin.py"}.isdisjoint(after)
    assert "serving/metrics.py" in after
    assert not [name for name in after if name.endswith((".rej", ".orig"))]
    recorded = json.loads(after[".cookiecutter.json"])
    assert recorded["admin"] is False
    state = json.loads((service / ".cruft.json").read_text(encoding="utf-8"))
    followed = state["context"]["cookiecutter"]
    assert {name: followed[name] for name in DEFAULTS} == {
        name: recorded[name] for name in DEFAULTS
    }
    assert "conflict" not in shell("git status", service)


def test_replay_over_a_service_keeps_its_secrets_and_data(
    home: Path, shell: Shell, fresh: Tree
) -> None:
    service = home / "fresh" / ANSWERS["project_slug"]
    for name, text in UNTRACKED.items():
        (service / name).parent.mkdir(exist_ok=True)
        (service / name).write_text(text)
    shell("uvx cookiecutter --replay -f -o fresh 'tem plate'", home)
    assert differing(tree(service), fresh) == UNTRACKED.keys()
    for name, text in UNTRACKED.items():
        assert (service / name).read_text() == text


def test_service_records_version_and_answers(bake: Bake) -> None:
    text = (TEMPLATE / "pyproject.toml").read_text(encoding="utf-8")
    version = re.findall('^version = "(.*)"$', text, re.MULTILINE)[0]
    service = bake(**TEXTS, admin="false")
    recorded = json.loads((service.path / ".cookiecutter.json").read_text())
    answers = service.answers | {"admin": False}
    assert recorded == {"template_version": version} | answers
    assert f" --checkout {version} " in (service.path / "README.md").read_text()


CHANGELOG = """\
# Changelog

## [Unreleased]

### Added

- Something.

## [0.1.0] - 2020-01-01

- The first.
"""


@pytest.fixture
def repository(tmp_path: Path, shell: Shell) -> Path:
    """What a release reads and changes, at 0.1.0, with something to release."""
    repository = tmp_path / "repository"
    repository.mkdir()
    for name in ("release.py", "Makefile"):
        shutil.copy(TEMPLATE / name, repository)
    for folder, _, places in PRODUCTS.values():
        (repository / folder).mkdir(parents=True, exist_ok=True)
        (repository / folder / "CHANGELOG.md").write_text(CHANGELOG)
        for name in places:
            text = (TEMPLATE / folder / name).read_text(encoding="utf-8")
            text = re.sub(r'"\d+\.\d+\.\d+"', '"0.1.0"', text, count=1)
            (repository / folder / name).write_text(text, encoding="utf-8")
    shell("git init -q; git add -A; git commit -qm First", repository)
    return repository


def make_release(repository: Path, home: Path, **variables: str) -> tuple[int, str]:
    command = ["make", "release", f"PYTHON={sys.executable}"]
    done = finish(
        [*command, *(f"{name}={value}" for name, value in variables.items())],
        repository,
        inherited() | {"HOME": str(home), "GIT_CONFIG_NOSYSTEM": "1"},
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("product", "tag", "folder", "files"),
    [
        ("template", "0.2.0", "", {"pyproject.toml", "cookiecutter.json"}),
        ("onloop", "onloop-0.2.0", f"{SERVICE}/vendor/onloop/", {"pyproject.toml"}),
    ],
)
def test_release_sets_the_version_dates_the_changelog_commits_and_tags(
    repository: Path,
    home: Path,
    shell: Shell,
    product: str,
    tag: str,
    folder: str,
    files: set[str],
) -> None:
    if product == "template":
        status, output = make_release(
            repository, home, VERSION="0.2.0", PRODUCT="onloop"
        )
        assert status == 0, output
    before = tree(repository)
    status, output = make_release(repository, home, VERSION="0.2.0", PRODUCT=product)
    assert status == 0, output
    assert f"git push origin HEAD {tag}" in output
    assert shell("git describe", repository).strip() == tag
    assert not shell("git status --porcelain", repository)
    after = tree(repository)
    assert differing(before, after) == {
        f"{folder}{n}" for n in files | {"CHANGELOG.md"}
    }
    for name in files:
        old, new = before[f"{folder}{name}"], after[f"{folder}{name}"]
        assert new == old.replace(b'"0.1.0"', b'"0.2.0"', 1)
    dated = f"[Unreleased]\n\n## [0.2.0] - {datetime.now(UTC).date()}\n"
    assert after[f"{folder}CHANGELOG.md"].decode() == CHANGELOG.replace(
        "[Unreleased]\n", dated
    )


@pytest.mark.parametrize("product", PRODUCTS)
def test_changelog_has_unreleased_and_then_the_dated_versions(product: str) -> None:
    folder, _, _ = PRODUCTS[product]
    text = (TEMPLATE / folder / "CHANGELOG.md").read_text(encoding="utf-8")
    unreleased, *versions = re.findall(r"^## .*", text, re.MULTILINE)
    assert unreleased == "## [Unreleased]"
    for version in versions:
        assert re.fullmatch(r"## \[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", version)


@pytest.mark.parametrize(
    ("prepare", "variables", "reason"),
    [
        ("echo >> Makefile", {"VERSION": "0.2.0"}, "not committed"),
        ("touch new", {"VERSION": "0.2.0"}, "not committed"),
        ("git tag 0.2.0", {"VERSION": "0.2.0"}, "was released before"),
        ("", {"VERSION": "0.1.0"}, "was released before"),
        (
            "git tag onloop-0.2.0",
            {"VERSION": "0.2.0", "PRODUCT": "onloop"},
            "onloop 0.2.0 was released before",
        ),
        (
            "sed -i 's/= \"0.1.0/= \"0.10.0/' pyproject.toml; git commit -qam x",
            {"VERSION": "0.9.0"},
            "VERSION=0.9.0 is older than the 0.10.0 of pyproject.toml",
        ),
        ("", {"VERSION": "0.2"}, "must be three numbers"),
        ("", {"VERSION": "0.2.0rc1"}, "must be three numbers"),
        ("", {}, "must be three numbers"),
        ("", {"VERSION": "0.2.0", "PRODUCT": "other"}, "template, onloop"),
        (
            "sed -i '/Something/d' CHANGELOG.md; git commit -qam x",
            {"VERSION": "0.2.0"},
            "has nothing under",
        ),
        # Git commits, and then cannot tag.
        (
            "git tag onloop-0.2.0/x",
            {"VERSION": "0.2.0", "PRODUCT": "onloop"},
            "failed: nothing was changed",
        ),
        # The template would carry what onloop has not released.
        ("", {"VERSION": "0.2.0"}, "Release onloop first (PRODUCT=onloop)"),
    ],
)
def test_refused_release_changes_nothing(
    repository: Path,
    home: Path,
    shell: Shell,
    prepare: str,
    variables: dict[str, str],
    reason: str,
) -> None:
    shell(prepare, repository)
    state = "git rev-parse HEAD; git tag; git status --porcelain"
    before = tree(repository), shell(state, repository)
    status, output = make_release(repository, home, **variables)
    assert status
    assert reason in output
    assert (tree(repository), shell(state, repository)) == before
