from functools import partial

from django.conf import settings
from django.urls import URLPattern, URLResolver, include, path

from serving.errors import error_response

urlpatterns: list[URLPattern | URLResolver] = [
    path("", include("home.urls")),
    # % if cookiecutter.admin
    path("admin/", include("config.admin")),
    # % endif
    # % if cookiecutter.api == "ninja"
    path("api/", include("home.api")),
    # % endif
    *([path("__requests__/", include("onloop.panel.urls"))] if settings.DEBUG else []),
]
# 503: no free thread; 504: REQUEST_TIMEOUT has passed.
handler400, handler403, handler404, handler500, handler503, handler504 = (
    partial(error_response, status=status) for status in (400, 403, 404, 500, 503, 504)
)
