"""Settings from the environment; a wrong value is refused in one sentence."""

import os
import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from serving.header import parse_header

HOST = r"([a-z0-9-]+(\.[a-z0-9-]+)*|\[[0-9a-f:.]+\])"
HOSTS = rf"(?i:\*|\.?{HOST})", "use names without scheme or port, such as example.com"
ORIGINS = rf"https?://(\*\.)?{HOST}(:\d+)?", "use scheme and name: https://example.com"


class Environment:
    """Reads variables; empty ones count as unset, and .env comes second."""

    def __init__(self, dotenv: Path, defaults: dict[str, str]) -> None:
        # Not copied to os.environ: a reloaded process would inherit outdated values.
        self.dotenv = read_dotenv(dotenv)
        self.defaults = defaults
        self.known: set[str] = set()

    def text(self, name: str) -> str:
        self.known.add(name)
        value = os.environ.get(name, self.dotenv.get(name))
        return value or self.defaults.get(name, "")

    def secret_key(self, name: str, debug: bool) -> str:
        value = self.text(name)
        # Without DEBUG, at least as long as Django's check security.W009 requires.
        if not value.strip() or (len(value) < 50 and not debug):
            allowed = "set 50 random characters (.env.example says how)"
            raise ImproperlyConfigured(f"{name} is not set or too short: {allowed}.")
        return value

    def matching(self, name: str, pattern: str, allowed: str) -> str:
        value = self.text(name)
        if not re.fullmatch(pattern, value):
            raise refused(name, value, allowed)
        return value

    def boolean(self, name: str) -> bool:
        value = self.matching(name, "|(?i:true|1|false|0)", "use true or false")
        return value.lower() in ("true", "1")

    def integer(self, name: str, least: int = 0) -> int:
        allowed = f"use a whole number, {least} or more"
        return int(self.matching(name, f"[{least}-9]" + "[0-9]{0,8}", allowed))

    def seconds(self, name: str) -> float | None:
        allowed = "use a number of seconds, 0.001 or more, or leave it unset"
        pattern = r"|(?=0*[1-9]|0*\.[0-9]{0,2}[1-9])[0-9]{0,9}\.?[0-9]{1,9}"
        return float(self.matching(name, pattern, allowed) or 0) or None

    def choice(self, name: str, allowed: Iterable[str]) -> str:
        pattern = "|".join(map(re.escape, allowed))
        return self.matching(name, pattern, f"use one of {', '.join(allowed)}")

    def items(self, name: str, pattern: str, allowed: str) -> list[str]:
        items = [item.strip() for item in self.text(name).split(",") if item.strip()]
        if wrong := [item for item in items if not re.fullmatch(pattern, item)]:
            raise refused(name, wrong[0], allowed)
        return items

    def header(self, name: str) -> str:
        return ": ".join(self.parsed(name, parse_header, self.text(name)))

    def url(self, name: str, parse: Callable[[str], Any]) -> Any:
        value = self.text(name)
        scheme = value[: value.find("://") + 1]  # the rest may hold a password
        return self.parsed(name, parse, value and f"{scheme}...")

    def parsed(self, name: str, parse: Callable[[str], Any], shown: str) -> Any:
        try:
            return parse(self.text(name))
        except ValueError as error:
            raise refused(name, shown, str(error)) from None

    def refuse_unknown(self) -> None:
        """Refuse a name in .env that no setting uses: it is probably a typo."""
        known = self.known
        for name in [n for n, v in self.dotenv.items() if v is None or n not in known]:
            shown = name if name.isupper() else "A name"  # it may be a secret
            near = get_close_matches(name.upper(), known, 1)
            hint = f"did you mean {near[0]}=?" if near else "no setting has this name."
            raise ImproperlyConfigured(f"{shown} in .env is refused: {hint}")


def read_dotenv(path: Path) -> dict[str, str | None]:
    if not path.exists():
        return {}  # as in production, where the parser is then not imported
    from dotenv import dotenv_values
    from dotenv.parser import parse_stream

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError):
        text = "\0"
    if {"\0", "\ufeff"} & {*text} or any(b.error for b in parse_stream(StringIO(text))):
        raise ImproperlyConfigured(".env must have NAME=value lines in UTF-8, no BOM.")
    return dotenv_values(stream=StringIO(text))


def refused(name: str, value: str, allowed: str) -> ImproperlyConfigured:
    subject = f"{name}={value!r} is refused" if value else f"{name} is not set"
    return ImproperlyConfigured(f"{subject}: {allowed}.")
