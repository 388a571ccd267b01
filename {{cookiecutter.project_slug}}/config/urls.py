from django.urls import URLPattern, URLResolver, include, path

urlpatterns: list[URLPattern | URLResolver] = [
    path("", include("home.urls")),
    # % if cookiecutter.admin
    path("admin/", include("config.admin")),
    # % endif
]
