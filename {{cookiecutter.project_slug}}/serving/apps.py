from django.apps import AppConfig

from serving import inline, logs


class ServingConfig(AppConfig):
    name = "serving"

    def ready(self) -> None:
        logs.configure_structlog()
        inline.install()
