"""The targets, each a ratio within one run: a report, not a test."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

RATE = "requests_per_second"


@dataclass(frozen=True)
class Ratio:
    """`{}` in a name stands for each version of Django."""

    workload: str
    contender: str
    against: str
    required: float
    figure: str = RATE
    at_most: bool = False

    def rows(self, measured: dict[str, Any]) -> Iterator[dict[str, Any]]:
        names = [(self.contender, self.against)]
        if "{}" in self.contender:
            names = [
                (self.contender.format(django), self.against.format(django))
                for django in ("5.2", "6.1")
            ]
        if self.workload not in measured:
            return
        found = measured[self.workload]["contenders"]
        for contender, against in names:
            reached = met = None
            if contender in found and against in found:
                reached = round(
                    found[contender][self.figure] / found[against][self.figure], 2
                )
                met = (
                    reached <= self.required
                    if self.at_most
                    else reached >= self.required
                )
            yield {
                "workload": self.workload,
                "figure": self.figure,
                "contender": contender,
                "against": against,
                "bound": "at most" if self.at_most else "at least",
                "required": self.required,
                "reached": reached,
                "met": met,
            }


RATIOS = (
    Ratio("json", "service-{}", "startproject-{}", 10),
    Ratio("json", "service-{}-admin", "startproject-{}", 8),
    Ratio("json", "service-{}", "fastapi", 2),
    Ratio("json", "service-{}", "starlette", 0.5),
    Ratio("chain-5.2", "ours", "none", 0.75),
    Ratio("chain-6.1", "ours", "none", 0.75),
    Ratio("orm-sqlite", "service-{}", "startproject-{}", 4),
    Ratio("orm-sqlite", "service-{}-admin", "startproject-{}", 4),
    Ratio("orm-sqlite", "service-{}", "fastapi-sqlalchemy", 1.2),
    Ratio("sync", "service-{}", "startproject-{}", 4),
    Ratio("sync", "service-{}-admin", "startproject-{}", 4),
    Ratio("busy", "service-{}", "fastapi", 1, "p99_ms", True),
    Ratio("streams", "service-{}", "starlette", 1.2, "kb_per_stream", True),
    Ratio("streams", "service-{}", "starlette", 1.2, "first_byte_max_ms", True),
    Ratio("middleware-256", "awaited", "blocking", 50),
    Ratio("middleware-256", "awaited", "synchronous", 4),
    Ratio("start", "service-{}-admin", "startproject-{}", 1.2, "seconds", True),
    Ratio("start", "service-{}-admin", "startproject-{}", 1.2, "memory_mib", True),
)


def table(rows: list[dict[str, Any]]) -> str:
    lines = [("workload", "contender", "against", "required", "reached", "")]
    for row in rows:
        name = row["workload"]
        if row["figure"] != RATE:
            name += f", {row['figure']}"
        sign = "≤" if row["bound"] == "at most" else "≥"
        reached = "not measured" if row["reached"] is None else f"{row['reached']:g}x"
        verdict = {True: "yes", False: "NO", None: ""}[row["met"]]
        required = f"{sign} {row['required']:g}x"
        lines.append(
            (name, row["contender"], row["against"], required, reached, verdict)
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
