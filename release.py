"""Release the template or onloop: `make release VERSION=0.2.0 [PRODUCT=onloop]`.

Sets the version, dates the changelog's "Unreleased", commits and tags; pushes nothing.
Whatever it refuses, or git does, leaves the repository as it was.
"""

import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parent
ONLOOP = "{{cookiecutter.project_slug}}/vendor/onloop"
# By product: its folder, what its tags begin with, and where its version stands.
PRODUCTS = {
    "template": (
        ".",
        "",
        {
            "pyproject.toml": r'^version = "(.*)"$',
            "cookiecutter.json": r'^  "_template_version": "(.*)",$',
        },
    ),
    "onloop": (ONLOOP, "onloop-", {"pyproject.toml": r'^version = "(.*)"$'}),
}
UNRELEASED = "## [Unreleased]\n"


def has_unreleased(changelog: str) -> bool:
    _, _, after = changelog.partition(UNRELEASED)
    entries = re.split("^## ", after, maxsplit=1, flags=re.MULTILINE)[0]
    return bool(re.search(r"^[-*] +\S", entries, re.MULTILINE))


def git(*arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]


def release(product: str, version: str) -> str:
    """Give the tag; exit with one sentence where something is wrong."""
    if product not in PRODUCTS:
        sys.exit(f"PRODUCT={product} is none of {', '.join(PRODUCTS)}.")
    if not re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}", version, re.ASCII):
        sys.exit(f"VERSION={version} must be three numbers, such as 0.2.0.")
    folder, prefix, places = PRODUCTS[product]
    tag = f"{prefix}{version}"
    changelog = ROOT / folder / "CHANGELOG.md"
    history = changelog.read_text(encoding="utf-8")
    if git("status", "--porcelain"):
        sys.exit("There are changes that are not committed: `git status` shows them.")
    heading = rf"^## \[?{re.escape(version)}\b"
    if git("tag", "--list", tag) or re.search(heading, history, re.MULTILINE):
        sys.exit(f"{product} {version} was released before: choose a newer version.")

    texts: dict[Path, str] = {}
    for name, pattern in places.items():
        path = ROOT / folder / name
        text = path.read_text(encoding="utf-8")
        [place] = re.finditer(pattern, text, re.MULTILINE)
        if numbers(version) < numbers(place[1]):
            sys.exit(f"VERSION={version} is older than the {place[1]} of {name}.")
        texts[path] = text[: place.start(1)] + version + text[place.end(1) :]
    if not has_unreleased(history):
        where = changelog.relative_to(ROOT)
        sys.exit(f'{where} has nothing under "{UNRELEASED.strip()}".')
    library = (ROOT / ONLOOP / "CHANGELOG.md").read_text(encoding="utf-8")
    if product == "template" and has_unreleased(library):
        sys.exit("Release onloop first (PRODUCT=onloop): it has unreleased changes.")
    today = datetime.now(UTC).date()
    dated = f"{UNRELEASED}\n## [{version}] - {today}\n"
    texts[changelog] = history.replace(UNRELEASED, dated, 1)

    start = git("rev-parse", "HEAD").strip()
    try:
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8", newline="\n")
        subject = f"Release {product} {version}"
        git("commit", "--quiet", "--all", "--message", subject)
        git("tag", "--annotate", "--message", subject, tag)
    except BaseException:
        git("reset", "--quiet", "--hard", start)
        raise
    return tag


if __name__ == "__main__":
    try:
        tag = release(*sys.argv[1:])
    except subprocess.CalledProcessError as error:
        sys.exit(f"`{' '.join(error.cmd)}` failed: nothing was changed.")
    print(f"Committed, and tagged {tag}. To publish it: git push origin HEAD {tag}")
