"""Every combination is rendered as cookiecutter renders it, and none is broken unseen."""

from collections import defaultdict
from pathlib import Path

import pytest

from tests.template.conftest import Bake
from tests.template.product import Renderer, collect, combinations, lint
from tests.template.prompts import CODE, COMBINATIONS, code_of, slot
from tests.template.service import TEMPLATE, TREE, generated_files, succeed

BROKEN = """
# % if cookiecutter.api == "ninja" and not cookiecutter.admin
# % if cookiecutter.deploy == "kubernetes" and cookiecutter.ci == "gitlab"
)
# % endif
# % endif
"""


@pytest.mark.parametrize(
    "row",
    [pytest.param(r, marks=pytest.mark.xdist_group(slot(r))) for r in COMBINATIONS],
    ids=range(len(COMBINATIONS)),
)
def test_renderer_gives_what_cookiecutter_and_the_hooks_leave(
    bake: Bake, row: dict[str, str]
) -> None:
    service = bake(**row)
    written = {
        file: content.decode(errors="surrogateescape")
        for file, content in generated_files(service.path).items()
    }
    assert Renderer().render(service.answers) == written


def test_defect_of_one_combination_is_found_and_no_other_is_broken(
    tmp_path: Path,
) -> None:
    """Of those that differ in more than values of settings."""
    template = tmp_path / "template"
    template.mkdir()
    for source in ("cookiecutter.json", "hooks", TREE.name):
        succeed(["cp", "-r", TEMPLATE / source, template], tmp_path)
    with (template / TREE.name / "serving" / "header.py").open("a") as file:
        file.write(BROKEN)
    every = combinations(*CODE, "deploy", "ci")
    contents, faults = collect(enumerate(every), template)
    assert faults == {}
    broken = {n for content in lint(contents, tmp_path) for n in contents[content]}
    chosen = {"admin": "false", "api": "ninja", "deploy": "kubernetes", "ci": "gitlab"}
    assert broken == {n for n, a in enumerate(every) if a.items() >= chosen.items()}
    assert len(broken) == 4


def test_code_depends_on_few_answers_and_each_combination_of_them_is_tested() -> None:
    """And so not on how it is deployed. Metrics add files, the other answers values."""
    every = combinations(*CODE, "deploy", "ci")[::2]
    contents, _ = collect(enumerate(every))
    texts: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for (file, text, _), numbers in contents.items():
        for of in code_of([every[number] for number in numbers]):
            if file.endswith(".py"):
                texts[file, *of].add(text)
    assert {key for key, found in texts.items() if len(found) > 1} == set()
    assert code_of(COMBINATIONS) == code_of(every)
