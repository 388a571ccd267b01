"""The request path of a generated service, tested from inside its environment."""

import re
from collections.abc import Callable, Sequence

import pytest

from tests.conftest import Bake
from tests.prompts import choices
from tests.service import TEMPLATE, Service

INSIDE = TEMPLATE / "tests" / "inside"


@pytest.fixture(scope="module", params=choices("django_version"))
def service(request: pytest.FixtureRequest, bake: Bake) -> Service:
    return bake(django_version=request.param, deploy="none", ci="none")


def inside(service: Service, command: str, **environment: str) -> str:
    path = f"{INSIDE}:{service.path}"
    return service.run(command, PYTHONPATH=path, MYPYPATH=path, **environment)


def passed_inside(
    service: Service, tests: str, packages: Sequence[str] = (), **environment: str
) -> int:
    """How many tests of this folder, or of a file in it, passed with these packages
    installed too.
    """
    extra = "".join(f"--with {package} " for package in packages)
    output = inside(
        service,
        f"uv run {extra}pytest {INSIDE}/{tests} --rootdir {INSIDE} "
        f"--confcutdir {INSIDE} -c {service.path}/pyproject.toml "
        f"--ds {tests.split('/')[0]}.settings -p no:cacheprovider",
        **environment,
    )
    assert "skipped" not in output
    passed = re.search(r"(\d+) passed", output)
    assert passed
    return int(passed[1])


@pytest.mark.xdist_group("request path")
def test_responses_threads_and_signals_are_as_in_stock_django(service: Service) -> None:
    assert passed_inside(service, "request_path") > 100


@pytest.mark.xdist_group("request path")
@pytest.mark.parametrize("django_version", choices("django_version"))
def test_open_transaction_breaks_no_later_request_on_postgresql(
    bake: Bake, new_database: Callable[[], str], django_version: str
) -> None:
    service = bake(
        django_version=django_version, database="postgresql", deploy="none", ci="none"
    )
    tests = "request_path/test_transactions.py"
    assert passed_inside(service, tests, DATABASE_URL=new_database()) == 5


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
