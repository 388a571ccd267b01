"""Shows the results: the charts and the tables: `python -m benchmarks.chart`."""

import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from benchmarks import ratios

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.json"
ONLOOP = HERE.parent / "{{cookiecutter.project_slug}}" / "vendor" / "onloop"
Results = dict[str, Any]

RATE = "{requests_per_second:,.0f}"
TEMPLATE, NO_ADMIN, STOCK = "service-5.2-admin", "service-5.2", "startproject-5.2"
Groups = tuple[tuple[str, str, str, dict[str, str]], ...]
# A chart: title, workload, figure, and a label for each contender. All bars of a
# group begin at zero and have one scale.
GLANCE: Groups = (
    (
        "JSON, requests a second",
        "json",
        "requests_per_second",
        {
            STOCK: "startproject",
            "fastapi": "FastAPI",
            TEMPLATE: "this template",
            NO_ADMIN: "without admin",
        },
    ),
    (
        "One row by the ORM, requests a second",
        "orm-sqlite",
        "requests_per_second",
        {
            STOCK: "startproject",
            "fastapi-sqlalchemy": "FastAPI",
            TEMPLATE: "this template",
            NO_ADMIN: "without admin",
        },
    ),
    (
        "Threads for 5,000 open streams, fewer is better",
        "streams",
        "threads",
        {
            STOCK: "startproject",
            # FastAPI's own streams are Starlette's.
            "starlette": "Starlette",
            NO_ADMIN: "without admin",
        },
    ),
)
WAITS = {
    "synchronous": "startproject",
    "blocking": "loop is blocked",
    "awaited": "awaited",
}
PAGE: Groups = (
    ("Milliseconds to a page's first byte, less is better", "page", "ttfb_ms", WAITS),
    ("Milliseconds to its largest contentful paint", "page", "lcp_ms", WAITS),
)
# Wide enough for the labels, and so narrow that a phone does not make the text tiny.
WIDTH, LABELS, FIGURES, ROW, BAR = 480, 146, 66, 23, 15
COLORS = {
    "light": {"text": "#1f2328", "peer": "#9aa4af", "ours": "#1a7f5a"},
    "dark": {"text": "#f0f6fc", "peer": "#6e7681", "ours": "#3fb68b"},
}


def draw(results: Results, groups: Groups, colors: dict[str, str]) -> str:
    parts: list[str] = []
    top = 0
    for title, workload, figure, labels in groups:
        parts.append(_text(0, top + 20, title, weight="600"))
        top += 30
        found = results["workloads"][workload]["contenders"]
        scale = (WIDTH - LABELS - FIGURES) / max(found[name][figure] for name in labels)
        for name, label in labels.items():
            ours = name.startswith(("service", "awaited"))
            width = max(2, round(found[name][figure] * scale))
            parts += [
                _text(LABELS - 8, top + 14, label, "end", "600" if ours else "400"),
                (
                    f'<rect fill="{colors["ours" if ours else "peer"]}" x="{LABELS}" '
                    f'y="{top + 1}" width="{width}" height="{BAR}" rx="2"/>'
                ),
                _text(LABELS + width + 6, top + 14, f"{found[name][figure]:,.0f}"),
            ]
            top += ROW
        top += 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" '
        f'font-family="system-ui, sans-serif" font-size="15" fill="{colors["text"]}">\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _text(x: int, y: int, text: str, anchor: str = "start", weight: str = "400") -> str:
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-weight="{weight}">'
        f"{escape(text)}</text>"
    )


def _machine(results: Results) -> str:
    return (
        f"One worker each, one core, {results['date'][:10]}, "
        f"{results['machine']['cpu']}, Python {results['tools']['python']}."
    )


def _at_a_glance(results: Results) -> str:
    """The chart, and what it shows in words."""
    measured = {
        name: workload["contenders"] for name, workload in results["workloads"].items()
    }
    rate = {
        name: found["requests_per_second"] for name, found in measured["json"].items()
    }
    rows = {
        name: found["requests_per_second"]
        for name, found in measured["orm-sqlite"].items()
    }
    threads = {name: found["threads"] for name, found in measured["streams"].items()}
    words = (
        f"With the same middleware as `startproject`, the default service answers "
        f"{rate[TEMPLATE] / rate[STOCK]:.1f} times as many JSON requests and reads "
        f"{rows[TEMPLATE] / rows[STOCK]:.1f} times as many rows. FastAPI answers "
        f"{rate['fastapi']:,.0f} JSON requests a second; the service "
        f"{rate[TEMPLATE]:,.0f}, and {rate[NO_ADMIN]:,.0f} without the admin, its "
        f"sessions and users. Then {threads[NO_ADMIN]:,} threads hold 5,000 open "
        f"streams, for which `startproject` needs {threads[STOCK]:,}."
    )
    shown = (
        f"{_picture('benchmarks/chart', words)}\n"
        f"{words} {_machine(results)} Django 5.2; "
        "[how it is measured, and all results](benchmarks/README.md).\n"
    )
    if words := _what_awaiting_buys(results):
        shown += f"\n{words} [As a chart](benchmarks/README.md#a-page-in-a-browser).\n"
    return shown


def _what_awaiting_buys(results: Results) -> str:
    """The chart of the page in words; nothing unless each case was measured."""
    found = results["workloads"]["page"]["contenders"]
    if not found.keys() >= WAITS.keys():
        return ""
    awaited, blocking, synchronous = (
        "{ttfb_ms:,.0f} and {lcp_ms:,.0f} ms".format(**found[name]) for name in DELAYED
    )
    return (
        "In a browser, while 50 other clients load the server, the first byte and the "
        "largest contentful paint of a page behind a middleware that awaits 200 ms of "
        f"I/O come after {awaited}; after {blocking} if it blocks the event loop "
        f"instead, and after {synchronous} with a synchronous middleware in "
        "`startproject`, in a thread for each request."
    )


def _picture(path: str, words: str) -> str:
    return (
        "<picture>\n"
        f'  <source media="(prefers-color-scheme: dark)" srcset="{path}-dark.svg">\n'
        f'  <img src="{path}-light.svg" width="560" alt="{words.replace("`", "")}">\n'
        "</picture>\n"
    )


COLUMNS = {
    "this template": ("service-{}-admin",),
    "without the admin": ("service-{}",),
    "`startproject`": ("startproject-{}",),
    "with django-structlog": ("structlog-{}",),
    "django-bolt": ("bolt-{}",),
    "django-bolt alone": ("bolt-{}-native",),
    "FastAPI": ("fastapi", "fastapi-sqlalchemy"),
    "Starlette": ("starlette",),
    "raw ASGI": ("asgi",),
}
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
    ("From start to first answer", "start", "{seconds:.2f} s"),
    ("Memory after a load", "start", "{memory_mib:.0f} MiB"),
)
# Of the cases that are no contenders.
DELAYED = {
    "awaited": "awaited, this template",
    "blocking": "blocking the event loop, this template",
    "synchronous": "synchronous, `startproject`",
}


def _all_results(results: Results) -> str:
    parts = [f"{_machine(results)}\n"]
    for django in ("5.2", "6.1"):
        parts.append(f"### Django {django}\n\n{_side_by_side(results, django)}")
    words = _what_awaiting_buys(results)
    picture = words and f"\n{_picture('page', words)}"
    for heading, rows, below in (
        ("A page in a browser", _in_a_browser(results), picture),
        ("What was aimed at", _aims(results), ""),
    ):
        if len(table := list(rows)) > 1:
            parts.append(f"### {heading}\n\n{_table(table)}{below}")
    return "\n".join(parts)


def _side_by_side(results: Results, django: str) -> str:
    rows = [("", *COLUMNS)]
    for title, workload, label in ROWS:
        found = results["workloads"][workload]["contenders"]
        cells = []
        for names in COLUMNS.values():
            known = (found.get(name.format(django)) for name in names)
            cells.append(next((label.format(**each) for each in known if each), ""))
        rows.append((title, *cells))
    measured = [any(cells) for cells in zip(*rows[1:], strict=True)]
    return _table(
        [
            tuple(cell for cell, some in zip(row, measured, strict=True) if some)
            for row in rows
        ]
    )


def _in_a_browser(results: Results) -> Iterator[tuple[str, ...]]:
    """Nothing but a heading where no browser was at hand."""
    workload = results["workloads"]["page"]
    found = workload["contenders"]
    names = [name for name in DELAYED if name in found]
    yield (workload["title"], *(DELAYED[name] for name in names))
    if names:
        for title, figure in (
            ("time to first byte", "ttfb_ms"),
            ("largest contentful paint", "lcp_ms"),
        ):
            yield (title, *(f"{found[name][figure]:,.0f} ms" for name in names))


def _aims(results: Results) -> Iterator[tuple[str, ...]]:
    yield ("workload", "", "against", "aimed at", "reached")
    for row in results["ratios"]:
        title = results["workloads"][row["workload"]]["title"]
        if row["figure"] != ratios.RATE:
            title += f": {row['figure']}"
        names = [
            row[name].replace("service", "this") for name in ("contender", "against")
        ]
        reached = "not measured" if row["met"] is None else f"{row['reached']:g}"
        if row["met"] is False:
            reached += ", missed"
        yield (title, *names, f"{row['bound']} {row['required']:g}", reached)


def _with_and_without_onloop(results: Results) -> str:
    rows = [("view", "`startproject`", "service on onloop", "")]
    for title, workload in (
        ("async, JSON", "json"),
        ("synchronous, JSON", "sync"),
        ("async, one row from SQLite by the ORM", "orm-sqlite"),
    ):
        stock, ours = (
            results["workloads"][workload]["contenders"][name]["requests_per_second"]
            for name in (STOCK, TEMPLATE)
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
    HERE.parent / "README.md": _at_a_glance,
    HERE / "README.md": _all_results,
    ONLOOP / "README.md": _with_and_without_onloop,
}


def documents(results: Results) -> dict[Path, str]:
    """Each file that shows figures, with these."""
    charts = {"chart": GLANCE}
    if _what_awaiting_buys(results):
        charts["page"] = PAGE
    drawn = {
        HERE / f"{name}-{scheme}.svg": draw(results, groups, colors)
        for name, groups in charts.items()
        for scheme, colors in COLORS.items()
    }
    for path, shown in READMES.items():
        before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        drawn[path] = f"{before}{BEGIN}{shown(results)}{END}{after}"
    return drawn


def main() -> None:
    for path, text in documents(
        json.loads(RESULTS.read_text(encoding="utf-8"))
    ).items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
