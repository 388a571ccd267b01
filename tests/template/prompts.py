"""The prompts of cookiecutter.json, and the combinations of answers that are baked."""

import json

from tests.template.service import TEMPLATE

CONTEXT = json.loads((TEMPLATE / "cookiecutter.json").read_text(encoding="utf-8"))
# Free text that breaks any file that does not escape it.
TEXTS = {
    "project_name": (
        'Tom\'s "Shop" \\n \\" </title> *a* _b_ `c` ![d] &amp; $x$ ${HOME} 100% a: b #{c} '
        "\u041co\u0441k\u0432a \u0645\u06cc\u200c\u062e \U0001f469\u200d\U0001f680 e\u0301 # |\\ #"
    ),
    "response_header": "X-Quoted`: \"a\" 'b' \\n \\\\ *c* a|b \\| ${HOME} $(id) # %",
}


def choices(prompt: str) -> list[str]:
    value = CONTEXT[prompt]
    if isinstance(value, bool):
        return [str(value).lower(), str(not value).lower()]
    if isinstance(value, list):
        return value
    return [value, TEXTS[prompt]] if prompt in TEXTS else [value]


PROMPTS = [prompt for prompt in CONTEXT if not prompt.startswith("_")]
DEFAULTS = {prompt: choices(prompt)[0] for prompt in PROMPTS} | {
    "project_slug": "my-async-service"
}
VARIED = {
    prompt: choices(prompt)
    for prompt in PROMPTS
    if prompt != "project_slug" and len(choices(prompt)) > 1
}


# The prompts that a service's code depends on: every combination of them is tested.
CODE = ("database", "admin", "api")
# Twelve rows hold each pair of choices, and each combination of CODE. Fewer cannot, for
# two prompts have four and three choices. A column is a row: for each prompt, the
# number of the choice that it takes.
CHOSEN = {
    "project_name": "011010000111",
    "django_version": "000000111111",
    "log_format": "012200122101",
    "response_header": "111000101100",
    "header_condition": "032321201130",
    "server_timing": "100220121210",
    "database": "110110100100",
    "admin": "111000111000",
    "api": "100001110110",
    "metrics": "010010111100",
    "deploy": "221020012110",
    "ci": "212201110200",
}
COMBINATIONS = [
    {
        prompt: choices(prompt)[int(number)]
        for prompt, number in zip(CHOSEN, column, strict=True)
    }
    for column in zip(*CHOSEN.values(), strict=True)
]


def combination(**answers: str) -> dict[str, str]:
    """The first of them with these answers, complete."""
    found = (row for row in COMBINATIONS if answers.items() <= row.items())
    return DEFAULTS | next(found)


def code_of(rows: list[dict[str, str]]) -> set[tuple[str, ...]]:
    return {tuple(row[prompt] for prompt in CODE) for row in rows}


# Where the lowest versions are installed, on the oldest Python; elsewhere the newest.
LOWEST = "5.2-false"


def slot(answers: dict[str, str]) -> str:
    """The same for services that may use one environment, one after the other."""
    version = answers.get("django_version", DEFAULTS["django_version"])
    return f"{version}-{answers.get('admin', DEFAULTS['admin'])}"


def name(answers: dict[str, str]) -> str:
    short = {"true": "admin", "false": "no-admin"} | {
        text: "nasty" for text in TEXTS.values()
    }
    parts = [short.get(answer, answer) for answer in answers.values()]
    return "/".join(part for part in parts if part not in (CONTEXT["project_name"],))
