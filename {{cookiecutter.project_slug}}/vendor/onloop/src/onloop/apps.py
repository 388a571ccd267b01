from django.apps import AppConfig
from django.core.checks import register


class OnloopConfig(AppConfig):
    name = "onloop"

    def ready(self) -> None:
        from onloop import checks

        register(checks.check_middlewares, "onloop")
        register(checks.check_observers_are_outermost, "onloop")
        register(checks.check_static_files_are_collected, "onloop", deploy=True)
