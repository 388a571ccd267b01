"""The ranges of dependencies; bounds.py proves all of both ends.

Of the services in test_combinations.py, a quarter has the lowest versions on the oldest
Python, and the others have the newest.
"""

import pytest

from tests.template.bounds import (
    ANSWERS,
    assert_lowest_are_installed,
    lowest,
    requirements,
)
from tests.template.conftest import Bake
from tests.template.prompts import COMBINATIONS, LOWEST, name, slot
from tests.template.service import ONLOOP


def test_every_dependency_has_a_lower_and_an_upper_bound(bake: Bake) -> None:
    service = bake(**ANSWERS, deploy="none", ci="none")
    for requirement in (*requirements(service.path), *requirements(ONLOOP)):
        if requirement.extras != {"test"}:
            assert lowest(requirement), requirement
            operators = {specifier.operator for specifier in requirement.specifier}
            assert operators & {"<", "~="}, requirement


@pytest.mark.xdist_group(LOWEST)
@pytest.mark.parametrize(
    "answers", [a for a in COMBINATIONS if slot(a) == LOWEST], ids=name
)
def test_lowest_versions_are_tested(install: Bake, answers: dict[str, str]) -> None:
    assert_lowest_are_installed(install(**answers))
