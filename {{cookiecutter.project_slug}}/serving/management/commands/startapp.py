from argparse import ArgumentParser

from django.conf import settings
from django.core.management.commands import startapp


class Command(startapp.Command):
    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.set_defaults(template=f"{settings.BASE_DIR}/config/app_template")
