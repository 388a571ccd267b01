from django.urls import path

from home import views

urlpatterns = [
    path("", views.index),
    path("favicon.ico", views.icon),
    path("hello/<str:name>/", views.hello),
    path("ticks/", views.ticks),
]
