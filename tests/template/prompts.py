"""The prompts of cookiecutter.json, and the combinations of answers that are baked."""

import json
import random

from allpairspy import AllPairs

from tests.template.service import TEMPLATE

CONTEXT = json.loads((TEMPLATE / "cookiecutter.json").read_text(encoding="utf-8"))
# Free text that breaks any file that does not escape it.
TEXTS = {
    "project_name": 'Tom\'s "Shop" \\n \\" </title> 🚀',
    "response_header": "X-Quoted: \"a\" 'b' \\n \\\\ # %",
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


def pairwise() -> list[dict[str, str]]:
    """allpairspy is greedy: how many rows it needs depends on the order of prompts.

    Another seed may find an order that needs fewer.
    """
    chance = random.Random(10)
    orders = [chance.sample(list(VARIED), len(VARIED)) for _ in range(60)]
    found = [
        [
            dict(zip(order, row, strict=True))
            for row in AllPairs([VARIED[p] for p in order])
        ]
        for order in orders
    ]
    best = min(found, key=lambda rows: (-len(code_of(rows)), len(rows)))
    return [{prompt: row[prompt] for prompt in VARIED} for row in best]


def code_of(rows: list[dict[str, str]]) -> set[tuple[str, ...]]:
    return {tuple(row[prompt] for prompt in CODE) for row in rows}


COMBINATIONS = pairwise()


def name(answers: dict[str, str]) -> str:
    short = {"true": "admin", "false": "no-admin"} | {
        text: "nasty" for text in TEXTS.values()
    }
    parts = [short.get(answer, answer) for answer in answers.values()]
    return "/".join(part for part in parts if part not in (CONTEXT["project_name"],))
