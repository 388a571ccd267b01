"""Each mistake is reported under its id, and nothing else is reported."""

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from django.core.checks import CheckMessage, run_checks
from onloop import _compat, checks
from onloop._chain import inspect_chain
from pytest_django import Settings

from . import middlewares

ROOT = Path(__file__).parents[2]
README = ROOT / "{{cookiecutter.project_slug}}" / "vendor" / "onloop" / "README.md"
Report = Callable[..., list[CheckMessage]]


def path_of(name: str) -> str:
    return f"{middlewares.__name__}.{name}"


@pytest.fixture
def report(settings: Settings) -> Report:
    """The messages when these middlewares are the innermost."""

    def report(*names: str) -> list[CheckMessage]:
        settings.MIDDLEWARE = [*settings.MIDDLEWARE, *map(path_of, names)]
        # Django keeps the checks in a set.
        return sorted(run_checks(tags=["onloop"]), key=lambda message: str(message.id))

    return report


def ids(messages: list[CheckMessage]) -> list[str]:
    return [str(message.id).removeprefix("onloop.") for message in messages]


def test_djangos_default_middlewares_have_no_message(report: Report) -> None:
    assert report() == []


@pytest.mark.parametrize(
    "name",
    [
        *("Marked", "PassesOn", "Hybrid", "AwaitsLater", "Nested", "OwnCall"),
        *("AsyncViewHook", "both", "Unused"),
        *("MarkedByAlias", "MarkedByHelper", "ReturnsName", "Closes"),
    ],
)
def test_middleware_that_stays_async_has_no_message(report: Report, name: str) -> None:
    assert report(name) == []


@pytest.mark.parametrize("name", ["Hopping", "HoppingViewHook", "hopping"])
def test_checks_are_silent_about_hops_that_only_a_request_shows(
    report: Report, name: str
) -> None:
    assert report(name) == []


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("Nowhere", "E001"),
        ("Unflagged", "E002"),
        ("undecorated", "E002"),
        ("coroutine_factory", "E002"),
        ("Unmarked", "E003"),
        ("UnmarkedAgain", "E003"),
        ("SyncCall", "E004"),
        ("SyncAnswer", "E004"),
        ("SyncAnswerByModule", "E004"),
        ("decorated_sync", "E004"),
        ("Unawaited", "E005"),
        ("UnawaitedPrivate", "E005"),
        ("UnawaitedMixin", "E005"),
        ("ReturnsCoroutine", "E005"),
        ("decorated_unawaited", "E005"),
        ("AsyncHook", "E006"),
        ("SyncOnly", "W001"),
        ("sync_only", "W001"),
        ("Mixed", "W002"),
        ("ViewHook", "W002"),
        ("Observer", "W003"),
    ],
)
def test_mistake_is_reported_once_with_its_path_and_a_fix(
    report: Report, name: str, id: str
) -> None:
    [message] = report(name)
    assert message.id == f"onloop.{id}"
    assert f"'{path_of(name)}'" in message.msg
    assert message.hint
    assert id == "E001" or path_of(name) in message.hint


def test_asynchronous_hook_of_the_mixin_is_named(report: Report) -> None:
    [message] = report("AsyncHook")
    assert "has an asynchronous process_request()" in message.msg
    assert "a synchronous process_request()" in str(message.hint)


def test_error_of_an_import_is_shown(report: Report) -> None:
    [message] = report("Nowhere")
    assert "does not define a" in message.msg


def test_code_that_does_not_await_is_quoted(report: Report) -> None:
    [message] = report("Unawaited")
    assert "`response['X-Bad']`" in message.msg
    assert "`response = await self.get_response(request)`" in str(message.hint)


def test_hooks_that_run_in_a_thread_are_named(report: Report) -> None:
    mixed, view = report("Mixed", "ViewHook")
    assert mixed.msg.endswith("a thread to run process_request and process_response.")
    assert view.msg.endswith("a thread to run process_view.")


def test_async_middleware_around_a_sync_one_must_not_claim_to_be_sync(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middlewares.Marked, "sync_capable", True)
    assert ids(report("Marked", "SyncOnly")) == ["E002", "W001"]


def test_only_the_middleware_that_is_synchronous_is_blamed_for_a_shared_thread(
    report: Report,
) -> None:
    # Django's own middleware around it is called synchronously too.
    [message] = report("Mixed", "SyncOnly")
    assert f"'{path_of('SyncOnly')}' is synchronous" in message.msg


def test_middleware_may_be_synchronous_on_purpose(
    report: Report, settings: Settings
) -> None:
    settings.SYNC_MIDDLEWARE = [path_of("SyncOnly"), path_of("Mixed")]
    assert report("SyncOnly", "Mixed") == []


def test_observers_of_requests_are_outermost(
    report: Report, settings: Settings
) -> None:
    others = [*settings.MIDDLEWARE]
    observer = path_of("Observer")
    settings.MIDDLEWARE = [observer, observer, *others]
    assert report() == []
    settings.MIDDLEWARE = [observer, others[0], observer, *others[1:]]
    [message] = report()
    assert message.id == "onloop.W003"
    assert f"'{others[0]}'" in message.msg


def test_under_djangos_own_handler_its_middlewares_are_no_mistake(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_compat, "PROBLEM", "a name is missing")
    assert report() == []
    assert {info.execution for info in inspect_chain()} == {"in a thread"}


@pytest.mark.parametrize(
    ("name", "execution"),
    [
        ("Marked", "on the loop"),
        ("PassesOn", "on the loop"),
        ("Hybrid", "on the loop"),
        ("AsyncViewHook", "on the loop"),
        ("both", "on the loop"),
        ("hopping", "on the loop"),
        ("SyncOnly", "in a thread"),
        ("sync_only", "in a thread"),
        ("Mixed", "in a thread"),
        ("ViewHook", "in a thread"),
        ("Nowhere", "in a thread"),
    ],
)
def test_class_tells_how_a_middleware_runs(
    settings: Settings, name: str, execution: str
) -> None:
    settings.MIDDLEWARE = [path_of(name), *settings.MIDDLEWARE]
    first, *others = inspect_chain()
    assert (first.path, first.execution) == (path_of(name), execution)
    assert {info.execution for info in others} == {"inlined"}


def test_what_is_outside_of_a_synchronous_middleware_runs_in_its_thread(
    settings: Settings,
) -> None:
    paths = [path_of(name) for name in ("Marked", "Hybrid", "both", "SyncOnly")]
    settings.MIDDLEWARE = [*paths, *settings.MIDDLEWARE]
    executions = [info.execution for info in inspect_chain()]
    assert executions[:4] == ["on the loop"] + ["in a thread"] * 3
    assert set(executions[4:]) == {"inlined"}


def test_subclass_of_djangos_own_middleware_is_not_inlined(settings: Settings) -> None:
    settings.MIDDLEWARE = [path_of("OwnSecurity"), path_of("OwnCsrf")]
    security, csrf = inspect_chain()
    assert security.thread_hooks == ("process_request", "process_response")
    assert csrf.thread_hooks == ("process_request", "process_response", "process_view")


@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        ("django.contrib.staticfiles.storage.StaticFilesStorage", []),
        ("django.contrib.staticfiles.storage.ManifestStaticFilesStorage", ["W004"]),
    ],
)
def test_static_files_that_were_not_collected_are_reported_for_deployment(
    settings: Settings, tmp_path: Path, storage: str, expected: list[str]
) -> None:
    settings.STATIC_URL = "static/"
    settings.STATIC_ROOT = tmp_path
    settings.STORAGES = {"staticfiles": {"BACKEND": storage}}
    assert run_checks(tags=["onloop"]) == []
    deployment = run_checks(tags=["onloop"], include_deployment_checks=True)
    assert ids(deployment) == expected
    (tmp_path / "staticfiles.json").write_text(
        '{"version": "1.1", "paths": {"a.css": "a.1.css"}, "hash": "1"}'
    )
    settings.STORAGES = {**settings.STORAGES}
    assert run_checks(tags=["onloop"], include_deployment_checks=True) == []


def test_readme_explains_every_id() -> None:
    source = Path(checks.__file__).read_text(encoding="utf-8")
    ids = re.findall(r'id="(onloop\.[EW]\d{3})"', source)
    readme = README.read_text(encoding="utf-8")
    assert re.findall(r"^\| `(onloop\.[EW]\w+)`", readme, re.MULTILINE) == sorted(ids)


def test_public_names_of_the_readme_are_there() -> None:
    readme = README.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(onloop\.[a-z_.]+)` \| (.*)", readme, re.MULTILINE)
    assert len(rows) == 7
    for module, names in rows:
        for name in re.findall(r"`(\w+)`", names):
            assert hasattr(import_module(module), name), f"{module}.{name}"
