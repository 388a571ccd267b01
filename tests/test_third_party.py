"""`manage.py middleware` against the middlewares that people add."""

import re

import pytest

from tests.conftest import Bake
from tests.prompts import choices
from tests.test_request_path import INSIDE, inside

PACKAGES = (
    "django-allauth",
    "django-auditlog",
    "django-axes",
    "django-cors-headers",
    "django-crum",
    "django-csp",
    "django-debug-toolbar",
    "django-htmx",
    "django-maintenance-mode",
    "django-permissions-policy",
    "django-ratelimit",
    "django-request-id",
    "django-simple-history",
    "django-structlog",
    "django-waffle",
    "whitenoise",
)


@pytest.mark.xdist_group("third party")
@pytest.mark.parametrize("django_version", choices("django_version"))
def test_hops_are_predicted_as_measured(bake: Bake, django_version: str) -> None:
    service = bake(django_version=django_version, deploy="none", ci="none")
    extra = " ".join(f"--with {package}" for package in PACKAGES)
    output = inside(
        service,
        f"uv run {extra} pytest {INSIDE}/third_party --rootdir {INSIDE} "
        f"--confcutdir {INSIDE} -c {service.path}/pyproject.toml "
        "--ds third_party.settings -p no:cacheprovider",
    )
    passed = re.search(r"(\d+) passed", output)
    assert passed and int(passed[1]) > 50
    assert "skipped" not in output
