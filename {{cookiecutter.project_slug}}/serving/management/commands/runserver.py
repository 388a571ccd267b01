import errno
import socket
from typing import Any

import uvicorn
from django.conf import settings
from django.core.management.base import CommandError
from django.core.management.commands import runserver
from django.db import OperationalError, connections

from serving import chain


class Command(runserver.Command):
    addr: str
    port: str
    use_ipv6: bool
    help = "Serve with uvicorn, reloading on changes, as production does without."

    def run(self, **options: Any) -> None:
        host, port = self.addr, int(self.port)
        self.refuse_port_in_use(host, port)
        if not options["skip_checks"]:
            self.check(display_num_errors=True)
            self.stdout.write(f"{chain.summary(chain.read())}\n")
        try:
            self.check_migrations()
        except OperationalError as error:
            self.stderr.write(self.style.WARNING(f"The database is away: {error}"))
        finally:
            connections.close_all()
        address = f"[{host}]" if self.use_ipv6 else host
        self.stdout.write(
            f"Serving on http://{address}:{port}/ (quit with CONTROL-C)\n",
            ending="",
        )
        self.stdout.flush()
        uvicorn.run(
            "config.asgi:application",
            host=host,
            port=port,
            reload=options["use_reloader"],
            reload_dirs=[str(settings.BASE_DIR)],
            reload_includes=["*.html", ".env"],
            # The settings did it, and the parent of a reloaded process has them too.
            log_config=None,
            # An open stream must not hold up a reload.
            timeout_graceful_shutdown=1,
        )

    def refuse_port_in_use(self, host: str, port: int) -> None:
        family = socket.AF_INET6 if self.use_ipv6 else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise CommandError(
                        f"Port {port} on {host} is in use: stop what listens there, or "
                        f"choose another port: manage.py runserver {port + 1}"
                    ) from None
                raise CommandError(f"Cannot listen on {host}:{port}: {error}") from None
