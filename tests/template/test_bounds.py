"""The ranges of dependencies; bounds.py proves all of both ends.

The newest on the index are what every other generated service installs.
"""

from pathlib import Path

from tests.template import interpreters
from tests.template.bounds import ANSWERS, lowest, prove, requirements
from tests.template.conftest import Bake
from tests.template.service import ONLOOP


def test_every_dependency_has_a_lower_and_an_upper_bound(bake: Bake) -> None:
    service = bake(**ANSWERS, deploy="none", ci="none")
    for requirement in (*requirements(service.path), *requirements(ONLOOP)):
        if requirement.extras != {"test"}:
            assert lowest(requirement), requirement
            operators = {specifier.operator for specifier in requirement.specifier}
            assert operators & {"<", "~="}, requirement


def test_service_works_with_the_lowest_versions_on_the_oldest_python(
    bake: Bake, tmp_path: Path
) -> None:
    service = bake(**ANSWERS, deploy="none", ci="none").copy(tmp_path / "service")
    prove(service, interpreters.find("3.11"), "lowest-direct")
