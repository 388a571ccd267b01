import json
import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand
from django.core.management.color import no_style

from serving import chain
from serving.chain import IN_A_THREAD, INLINED, ON_THE_LOOP, Link

PHASES = ("request", "view", "response")


class Command(BaseCommand):
    help = (
        "Show how each middleware runs, outermost first, and how often a request "
        "leaves the event loop for it: a GET of an async view, in a warm process."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--json", action="store_true", help="Print JSON instead of a table."
        )
        parser.add_argument(
            "--fail-on-hops",
            action="store_true",
            help="Exit with status 1 if a request leaves the event loop.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if not (self.stdout.isatty() or options["force_color"]):
            self.style = no_style()
        links = chain.read()
        total = sum(link.hops for link in links)
        if options["json"]:
            self.stdout.write(json.dumps(as_data(links), indent=2))
        else:
            for line in self.table(links):
                self.stdout.write(line)
        broken = any(link.error for link in links)
        if broken or (options["fail_on_hops"] and total):
            sys.exit(1)

    def table(self, links: list[Link]) -> list[str]:
        width = max([len(link.path) for link in links], default=0)
        width = max(width, len("total"))
        head = f"{'middleware':{width}}  {'runs':11}"
        columns = "".join(f"{phase:>10}" for phase in PHASES)
        lines = [self.style.MIGRATE_HEADING(f"{head}{columns}{'hops':>6}")]
        for link in links:
            if link.error:
                error = f"cannot be imported: {link.error}"
                lines.append(self.style.ERROR(f"{link.path:{width}}  {error}"))
                continue
            counts = "".join(f"{getattr(link, phase):>10}" for phase in PHASES)
            paint = {
                ON_THE_LOOP: self.style.SUCCESS,
                INLINED: self.style.SUCCESS,
                IN_A_THREAD: self.style.WARNING,
            }[link.runs]
            row = f"{link.path:{width}}  {link.runs:11}{counts}{link.hops:>6}"
            lines.append(paint(row))
        sums = [sum(getattr(link, phase) for link in links) for phase in PHASES]
        counts = "".join(f"{count:>10}" for count in sums)
        lines.append(f"{'total':{width}}  {'':11}{counts}{sum(sums):>6}")
        return lines


def as_data(links: list[Link]) -> dict[str, Any]:
    return {
        "middleware": [
            {"path": link.path, "error": str(link.error)}
            if link.error
            else {
                "path": link.path,
                "runs": link.runs,
                **{phase: getattr(link, phase) for phase in PHASES},
                "hops": link.hops,
            }
            for link in links
        ],
        "hops": sum(link.hops for link in links),
    }
