"""Every combination is rendered as cookiecutter renders it, and none is broken unseen."""

from collections import defaultdict
from pathlib import Path

import pytest

from tests.template.conftest import Bake
from tests.template.product import Renderer, collect, combinations, lint
from tests.template.prompts import CODE, COMBINATIONS, DEFAULTS, code_of, slot
from tests.template.service import TEMPLATE, TREE, generated_files, succeed

# By its file: a defect, and the answers that have it.
DEFECTS: dict[str, tuple[str, dict[str, str]]] = {
    "serving/header.py": (
        ")",
        {"admin": "false", "api": "ninja", "deploy": "kubernetes", "ci": "gitlab"},
    ),
    "config/urls.py": ("import os", {"database": "postgresql", "ci": "none"}),
}


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
    """Checks the combinations that change files, not only settings."""
    template = tmp_path / "template"
    template.mkdir()
    for source in ("cookiecutter.json", "hooks", TREE.name):
        succeed(["cp", "-r", TEMPLATE / source, template], tmp_path)
    for name, (line, answers) in DEFECTS.items():
        given = "cookiecutter.{}|string|lower == '{}'"
        condition = " and ".join(given.format(*answer) for answer in answers.items())
        with (template / TREE.name / name).open("a") as file:
            file.write(f"# % if {condition}\n{line}\n# % endif\n")
    every = combinations(*CODE, "deploy", "ci")
    contents, faults = collect(enumerate(every), template)
    assert faults == {}
    (tmp_path / "linted").mkdir()
    wrong = lint(contents, tmp_path / "linted")
    assert {file for file, _, _ in wrong} == DEFECTS.keys()
    for name, (_, answers) in DEFECTS.items():
        broken = {n for found in wrong if found[0] == name for n in contents[found]}
        assert broken
        assert broken == {
            n for n, of in enumerate(every) if of.items() >= answers.items()
        }


def test_linter_that_fails_and_names_no_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "ruff.toml").write_text("no-such-option = 1\n")
    contents, _ = collect([(0, DEFAULTS)])
    with pytest.raises(AssertionError, match="no-such-option"):
        lint(contents, tmp_path)


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
