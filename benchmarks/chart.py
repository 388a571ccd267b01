"""Shows the results: a chart, and a table in each README: `python -m benchmarks.chart`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.json"
ONLOOP = HERE.parent / "{{cookiecutter.project_slug}}" / "vendor" / "onloop"


@dataclass(frozen=True)
class Panel:
    workload: str
    unit: str = "requests per second"
    figure: str = "requests_per_second"
    label: str = "{requests_per_second:,.0f}"
    lowest_first: bool = False


PANELS = (
    Panel("json"),
    Panel("orm-sqlite"),
    Panel("sync"),
    Panel("busy", "p99 in milliseconds", "p99_ms", "{p99_ms:,.1f}", True),
    Panel(
        "streams",
        "longest wait for the first event",
        "first_byte_max_ms",
        "{first_byte_max_ms:,.0f} ms, {threads:,} threads, {kb_per_stream:.0f} kB each",
        True,
    ),
    Panel(
        "page",
        "first byte, largest paint",
        "ttfb_ms",
        "{ttfb_ms:,.0f} ms, {lcp_ms:,.0f} ms",
        True,
    ),
)
# Of the cases that are no contenders.
DELAYED = {
    "awaited": "awaited, this template",
    "blocking": "blocking the event loop, this template",
    "synchronous": "synchronous, startproject",
}
WIDTH, LABELS, LETTER, ROW, BAR = 760, 300, 7, 20, 13

# The page around a picture is light or dark; inside it only the media query tells.
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.title { font-weight: 600; font-size: 15px; }
.small { font-size: 11px; fill: #59636e; }
.ours { font-weight: 600; }
rect { fill: #9aa4af; }
rect.ours { fill: #1a7f5a; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; }
  .small { fill: #9198a1; }
  rect { fill: #59636e; }
  rect.ours { fill: #3fb68b; }
}
"""


def draw(results: dict[str, Any]) -> str:
    parts: list[str] = []
    top = 8
    for panel in PANELS:
        found = results["workloads"].get(panel.workload)
        if found and found["contenders"]:
            bars, height = _panel(panel, found, results["titles"], top)
            parts += bars
            top += height
    parts.append(_text(8, top + 6, _machine(results), "small"))
    top += 20
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" '
        f'width="{WIDTH}" height="{top}" role="img" '
        'aria-label="Each workload, by contender">\n'
        f"<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _machine(results: dict[str, Any]) -> str:
    return (
        f"One worker each, one core, {results['date'][:10]}, "
        f"{results['machine']['cpu']}, Python {results['tools']['python']}."
    )


def _panel(
    panel: Panel, workload: dict[str, Any], titles: dict[str, str], top: int
) -> tuple[list[str], int]:
    contenders = workload["contenders"]
    titles = titles | DELAYED
    figures = {name: found[panel.figure] for name, found in contenders.items()}
    shown = {name: panel.label.format(**found) for name, found in contenders.items()}
    ranked = sorted(figures, key=figures.__getitem__, reverse=not panel.lowest_first)
    room = max(map(len, shown.values())) * LETTER + 14
    scale = (WIDTH - LABELS - room) / (max(figures.values()) or 1)
    title = f"{workload['title']}: {panel.unit}"
    parts = [_text(8, top + 16, title, "title")]
    for row, name in enumerate(ranked):
        y = top + 30 + row * ROW
        kind = "ours" if name.startswith(("service", "awaited")) else "peer"
        width = max(1, round(figures[name] * scale))
        parts += [
            _text(LABELS - 8, y + 11, titles[name], kind, "end"),
            (
                f'<rect class="{kind}" x="{LABELS}" y="{y}" width="{width}" '
                f'height="{BAR}" rx="2"/>'
            ),
            _text(LABELS + width + 6, y + 11, shown[name], kind),
        ]
    return parts, 30 + len(ranked) * ROW + 16


def _text(x: int, y: int, text: str, kind: str, anchor: str = "start") -> str:
    return (
        f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )


COLUMNS = {
    "this template": ("service-5.2",),
    "with the admin": ("service-5.2-admin",),
    "`startproject`": ("startproject-5.2",),
    "django-bolt": ("bolt-5.2",),
    "django-bolt alone": ("bolt-5.2-native",),
    "FastAPI": ("fastapi", "fastapi-sqlalchemy"),
    "Starlette": ("starlette",),
}
RATE = "{requests_per_second:,.0f}"
ROWS = (
    ("JSON, requests a second", "json", RATE),
    ("ORM read, SQLite", "orm-sqlite", RATE),
    ("ORM read, PostgreSQL", "orm-postgresql", RATE),
    ("Sync view", "sync", RATE),
    ("JSON beside 64 slow sync requests, p99", "busy", "{p99_ms:,.1f} ms"),
    ("5,000 open streams: threads", "streams", "{threads:,}"),
    ("memory for each", "streams", "{kb_per_stream:.0f} kB"),
    ("first event, median", "streams", "{first_byte_p50_ms:,.1f} ms"),
    ("first event, longest wait", "streams", "{first_byte_max_ms:,.0f} ms"),
)


def _side_by_side(results: dict[str, Any]) -> str:
    rows = [("", *COLUMNS)]
    for title, workload, label in ROWS:
        if measured := results["workloads"].get(workload):
            found = measured["contenders"]
            cells = (
                next(
                    (label.format(**found[name]) for name in names if name in found), ""
                )
                for names in COLUMNS.values()
            )
            rows.append((title, *cells))
    tables = f"{_table(rows)}\n{_in_a_browser(results)}"
    return f"{tables}{_machine(results)} Django 5.2.\n"


def _in_a_browser(results: dict[str, Any]) -> str:
    """Nothing where no browser was at hand."""
    workload = results["workloads"].get("page")
    if not workload or not (found := workload["contenders"]):
        return ""
    names = [name for name in DELAYED if name in found]
    rows = [(workload["title"], *(DELAYED[name] for name in names))]
    for title, figure in (
        ("time to first byte", "ttfb_ms"),
        ("largest contentful paint", "lcp_ms"),
    ):
        rows.append((title, *(f"{found[name][figure]:,.0f} ms" for name in names)))
    return f"{_table(rows)}\n"


def _with_and_without_onloop(results: dict[str, Any]) -> str:
    rows = [("view", "`startproject`", "service on onloop", "")]
    for title, workload in (
        ("async, JSON", "json"),
        ("synchronous, JSON", "sync"),
        ("async, one row from SQLite by the ORM", "orm-sqlite"),
    ):
        stock, ours = (
            results["workloads"][workload]["contenders"][name]["requests_per_second"]
            for name in ("startproject-5.2", "service-5.2-admin")
        )
        rows.append(
            (title, f"{stock:,.0f}", f"{ours:,.0f}", f"{ours / stock:.1f} times")
        )
    return f"{_table(rows)}\n{_machine(results)} Django 5.2, 16 connections.\n"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    ruled = [rows[0], ("---",) * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(row)} |\n" for row in ruled)


BEGIN, END = "<!-- written by make bench -->\n", "<!-- until here -->\n"
READMES = {
    HERE.parent / "README.md": _side_by_side,
    ONLOOP / "README.md": _with_and_without_onloop,
}


def documents(results: dict[str, Any]) -> dict[Path, str]:
    """Each file that shows figures, with these."""
    drawn = {HERE / "chart.svg": draw(results)}
    for path, table in READMES.items():
        before, _, rest = path.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        drawn[path] = f"{before}{BEGIN}{table(results)}{END}{after}"
    return drawn


def main() -> None:
    for path, text in documents(json.loads(RESULTS.read_text())).items():
        path.write_text(text)


if __name__ == "__main__":
    main()
