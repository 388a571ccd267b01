"""The request path of a generated service, tested from inside its environment."""

import re
from collections.abc import Sequence

import pytest

from tests.conftest import Bake
from tests.prompts import choices
from tests.service import TEMPLATE, Service

INSIDE = TEMPLATE / "tests" / "inside"


@pytest.fixture(scope="module", params=choices("django_version"))
def service(request: pytest.FixtureRequest, bake: Bake) -> Service:
    return bake(django_version=request.param, deploy="none", ci="none")


def inside(service: Service, command: str) -> str:
    path = f"{INSIDE}:{service.path}"
    return service.run(command, PYTHONPATH=path, MYPYPATH=path)


def passed_inside(service: Service, tests: str, packages: Sequence[str] = ()) -> int:
    """How many tests of this folder passed, with these packages installed too."""
    extra = "".join(f"--with {package} " for package in packages)
    output = inside(
        service,
        f"uv run {extra}pytest {INSIDE}/{tests} --rootdir {INSIDE} "
        f"--confcutdir {INSIDE} -c {service.path}/pyproject.toml "
        f"--ds {tests}.settings -p no:cacheprovider",
    )
    assert "skipped" not in output
    passed = re.search(r"(\d+) passed", output)
    assert passed
    return int(passed[1])


@pytest.mark.xdist_group("request path")
def test_responses_threads_and_signals_are_as_in_stock_django(service: Service) -> None:
    assert passed_inside(service, "request_path") > 100


@pytest.mark.xdist_group("request path")
def test_sentry_tells_concurrent_requests_apart(service: Service) -> None:
    # Apart from the others, for it replaces methods of Django's in its process.
    assert passed_inside(service, "sentry", ["sentry-sdk"]) == 1


@pytest.mark.xdist_group("request path")
def test_types_of_the_tests_themselves(service: Service) -> None:
    inside(
        service,
        # So that one of these folders may import from another.
        "uv run mypy --explicit-package-bases "
        f"--config-file {service.path}/pyproject.toml "
        f"{INSIDE}/request_path {INSIDE}/third_party {INSIDE}/sentry",
    )


@pytest.mark.xdist_group("judge")
def test_djangos_own_tests_pass(service: Service) -> None:
    output = inside(service, f"uv run python {INSIDE}/judge/run.py")
    ran = re.search(r"^Ran (\d+) tests", output, re.MULTILINE)
    assert ran and int(ran[1]) > 1000
