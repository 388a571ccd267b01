"""`manage.py middleware` against the middlewares that people add."""

import pytest

from tests.conftest import Bake
from tests.prompts import choices
from tests.test_request_path import passed_inside

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
    assert passed_inside(service, "third_party", PACKAGES) > 50
