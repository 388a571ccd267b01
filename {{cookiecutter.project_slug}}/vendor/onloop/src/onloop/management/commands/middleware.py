import asyncio
import json
import sys
from argparse import ArgumentParser
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.core.management.base import BaseCommand, CommandError
from django.utils.module_loading import import_string

from onloop import _compat
from onloop.checks import check_middlewares

if TYPE_CHECKING:
    # Cannot be imported with a Django that onloop does not support.
    from onloop.measure import Measurement, ThreadHop


class Command(BaseCommand):
    help = (
        "Serve one GET request in process, and show how each middleware ran, outermost "
        "first, and each time that it left the event loop: a thread hop is one call "
        "through sync_to_async() or async_to_sync()."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "path", nargs="?", default="/", help="What to request; / by default."
        )
        parser.add_argument(
            "--json", action="store_true", help="Print JSON instead of a table."
        )
        parser.add_argument(
            "--fail-on-hops",
            action="store_true",
            help="Exit with status 1 if there was a thread hop; those of a middleware "
            "that is listed in SYNC_MIDDLEWARE do not count, those of the view do.",
        )

    def handle(self, *args: Any, path: str, **options: Any) -> None:
        if not path.startswith("/"):
            raise CommandError(f"The path '{path}' does not begin with a slash.")
        for message in check_middlewares():
            if message.is_serious():
                raise CommandError(message.msg)
        if _compat.PROBLEM:
            raise CommandError(f"onloop does not serve here: {_compat.PROBLEM}.")
        served = getattr(settings, "ASGI_APPLICATION", "")
        if served and type(import_string(served)) is ASGIHandler:
            raise CommandError(
                f"onloop does not serve here: {served} is Django's own handler."
            )
        from onloop.measure import measure

        measurement = asyncio.run(measure(path))
        if options["json"]:
            self.stdout.write(json.dumps(as_data(measurement), indent=2))
        else:
            self.write_table(measurement)
        allowed = getattr(settings, "SYNC_MIDDLEWARE", ())
        hops = [hop for hop in measurement.thread_hops if hop.middleware not in allowed]
        if options["fail_on_hops"] and hops:
            sys.exit(1)

    def write_table(self, measurement: "Measurement") -> None:
        rows = [*measurement.middleware, ("(view and others)", "", measurement.other)]
        width = max(len(path) for path, _, _ in rows)
        self.stdout.write(f"GET {measurement.path} -> {measurement.status}")
        head = f"{'middleware':{width}}  {'execution':11}  thread hops"
        self.stdout.write(self.style.MIGRATE_HEADING(head))
        for path, execution, hops in rows:
            paint = self.style.WARNING if hops else self.style.SUCCESS
            row = f"{path:{width}}  {execution:11}  {len(hops):11}"
            self.stdout.write(paint(row))
            for hop in hops:
                self.stdout.write(f"    {hop.what} at {hop.where}")
        total = len(measurement.thread_hops)
        self.stdout.write(f"{'total':{width}}  {'':11}  {total:11}")


def as_data(measurement: "Measurement") -> dict[str, Any]:
    def data(hops: "list[ThreadHop]") -> list[dict[str, str]]:
        return [{"what": hop.what, "where": hop.where} for hop in hops]

    return {
        "path": measurement.path,
        "status": measurement.status,
        "middleware": [
            {"path": path, "execution": execution, "thread_hops": data(hops)}
            for path, execution, hops in measurement.middleware
        ],
        "other": data(measurement.other),
        "total": len(measurement.thread_hops),
    }
