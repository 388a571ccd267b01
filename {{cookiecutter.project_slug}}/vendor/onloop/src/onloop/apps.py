from typing import Any

from django.apps import AppConfig
from django.core.checks import CheckMessage, register


class OnloopConfig(AppConfig):
    name = "onloop"

    def ready(self) -> None:
        register(check, "onloop")
        register(check_deployment, "onloop", deploy=True)


def check(**kwargs: Any) -> list[CheckMessage]:
    # Imported here, because a server runs no checks.
    from onloop import checks

    return checks.check_middlewares() + checks.check_observers_are_outermost()


def check_deployment(**kwargs: Any) -> list[CheckMessage]:
    from onloop import checks

    return checks.check_static_files_are_collected()
