from django.urls import path

from home import views

urlpatterns = [
    path("", views.index),
    path("hello/<str:name>/", views.hello),
    path("ticks/", views.ticks),
]
