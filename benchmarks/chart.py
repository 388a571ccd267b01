"""Draws the results as SVG: `chart.py [results.json] [chart.svg]`."""

import json
import sys
from html import escape
from pathlib import Path
from typing import Any

PANELS = ("json", "orm-sqlite", "sync")
WIDTH, LABELS, FIGURES, ROW, BAR = 760, 300, 70, 20, 13

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
    for name in PANELS:
        found = results["workloads"].get(name)
        if found and found["contenders"]:
            bars, height = _panel(found, results["titles"], top)
            parts += bars
            top += height
    machine = results["machine"]
    caption = (
        f"One worker each, one core, {results['date'][:10]}, "
        f"{machine['cpu']}, Python {results['tools']['python']}."
    )
    parts.append(_text(8, top + 6, caption, "small"))
    top += 20
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" '
        f'width="{WIDTH}" height="{top}" role="img" '
        'aria-label="Requests per second, by workload and contender">\n'
        f"<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _panel(
    workload: dict[str, Any], titles: dict[str, str], top: int
) -> tuple[list[str], int]:
    rates = {
        name: found["requests_per_second"]
        for name, found in workload["contenders"].items()
    }
    ranked = sorted(rates, key=lambda name: -rates[name])
    scale = (WIDTH - LABELS - FIGURES) / (max(rates.values()) or 1)
    title = f"{workload['title']}: requests per second"
    parts = [_text(8, top + 16, title, "title")]
    for row, name in enumerate(ranked):
        y = top + 30 + row * ROW
        kind = "ours" if name.startswith("service") else "peer"
        width = max(1, round(rates[name] * scale))
        parts += [
            _text(LABELS - 8, y + 11, titles[name], kind, "end"),
            (
                f'<rect class="{kind}" x="{LABELS}" y="{y}" width="{width}" '
                f'height="{BAR}" rx="2"/>'
            ),
            _text(LABELS + width + 6, y + 11, f"{rates[name]:,.0f}", kind),
        ]
    return parts, 30 + len(ranked) * ROW + 16


def _text(x: int, y: int, text: str, kind: str, anchor: str = "start") -> str:
    return (
        f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )


def main() -> None:
    here = Path(__file__).parent
    source, target, *_ = [
        *map(Path, sys.argv[1:]),
        *(here / "results.json", here / "chart.svg")[len(sys.argv) - 1 :],
    ]
    target.write_text(draw(json.loads(source.read_text())))


if __name__ == "__main__":
    main()
