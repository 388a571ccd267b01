from django.apps import AppConfig

from serving import checks, inline, logs


class ServingConfig(AppConfig):
    name = "serving"

    def ready(self) -> None:
        logs.configure_structlog()
        inline.install()
        checks.register_checks()
