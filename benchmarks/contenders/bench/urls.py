from django.urls import include, path

from . import views

urlpatterns = [
    path("json", views.json_view),
    path("sync", views.sync_view),
    path("page", views.page_view),
    path("slow", views.slow_view),
    path("stream", views.stream_view),
    path("items/<int:pk>", views.item_view),
    path("", include("config.urls")),
]
