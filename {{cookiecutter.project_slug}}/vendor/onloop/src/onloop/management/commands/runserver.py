import errno
import logging
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import parent_process
from typing import Any

import django
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIHandler
from django.core.management.base import CommandError, SystemCheckError
from django.core.management.commands import runserver
from django.db import OperationalError, connections
from django.utils.module_loading import import_string

from onloop._chain import IN_A_THREAD, inspect_chain


class Command(runserver.Command):
    addr: str
    port: str
    use_ipv6: bool
    help = "Serve ASGI_APPLICATION with uvicorn, and reload it when a file changes."

    def run(self, **options: Any) -> None:
        try:
            import uvicorn
        except ImportError:
            raise CommandError(
                "runserver needs uvicorn: add uvicorn[standard] to the dependencies."
            ) from None
        host, port = self.addr, int(self.port)
        module, _, name = getattr(settings, "ASGI_APPLICATION", "").rpartition(".")
        if not module:
            raise CommandError(
                "runserver serves what ASGI_APPLICATION names: set it to a dotted "
                "path, such as 'config.asgi.application'."
            )
        self.refuse_port_in_use(host, port)
        application = f"{module}:{name}"
        if not options["skip_checks"]:
            application = f"{__name__}:{checked_application.__name__}"
        try:
            self.check_migrations()
        except OperationalError as error:
            self.stderr.write(self.style.WARNING(f"No database: {error}"))
        finally:
            connections.close_all()
        address = f"[{host}]" if self.use_ipv6 else host
        self.stdout.write(f"Serving on http://{address}:{port}/ (quit with CONTROL-C)")
        self.stdout.flush()
        reload: dict[str, Any] = {}
        if options["use_reloader"]:
            folder = str(getattr(settings, "BASE_DIR", os.getcwd()))
            reload = {"reload_dirs": [folder], "reload_includes": ["*.html", ".env"]}
            # It logs each file that changes, including log files and the database.
            logging.getLogger("watchfiles").setLevel(logging.WARNING)
        uvicorn.run(
            application,
            factory=not options["skip_checks"],
            host=host,
            port=port,
            reload=options["use_reloader"],
            # It would reveal the server software.
            server_header=False,
            **reload,
            # LOGGING, if set, configures uvicorn's loggers too.
            log_config=None if settings.LOGGING else uvicorn.config.LOGGING_CONFIG,
            # An open stream must not hold up a reload.
            timeout_graceful_shutdown=1,
        )

    def refuse_port_in_use(self, host: str, port: int) -> None:
        family = socket.AF_INET6 if self.use_ipv6 else socket.AF_INET
        with socket.socket(family) as probe:
            # On Windows it would share the port with whoever listens there.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, os.name == "posix")
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise CommandError(
                        f"Port {port} on {host} is in use: stop what listens there, or "
                        f"choose another port: manage.py runserver {port + 1}"
                    ) from None
                raise CommandError(f"Cannot listen on {host}:{port}: {error}") from None


def checked_application() -> Any:
    """The application factory, which repeats the checks after each reload."""
    command = Command()
    try:
        django.setup()
        application = import_string(settings.ASGI_APPLICATION)  # type: ignore[misc]
        # Not on the event loop, because a check may query the database.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(command.check, display_num_errors=True).result()
    except (ImproperlyConfigured, SystemCheckError) as error:
        waits = "\nNothing is served until a file changes." if parent_process() else ""
        sys.exit(f"{error}{waits}")
    command.stdout.write(summary(application))
    return application


def summary(application: Any) -> str:
    if type(application) is ASGIHandler:
        return "ASGI_APPLICATION is Django's own handler, not onloop's."
    chain = inspect_chain()
    stay = sum(info.execution != IN_A_THREAD for info in chain)
    sentence = f"{stay} of {len(chain)} middlewares stay on the event loop"
    if stay < len(chain):
        return f"{sentence}; `manage.py middleware` shows the others."
    return f"{sentence}."
