from django.urls import path

from . import views

handler404 = views.not_found

urlpatterns = [
    path("", views.hello, name="hello"),
    path("sync/", views.synchronous),
    path("orm/", views.orm),
    path("orm/<int:times>/", views.orm),
    path("thread/", views.thread),
    path("slash/", views.hello),
    path("form/", views.form),
    path("session/write/", views.session_write),
    path("session/read/", views.session_read),
    path("session/flush/", views.session_flush),
    path("session/lose/", views.session_lose),
    path("body/", views.body),
    path("urlconf/", views.urlconf),
    path("session/sync/<do>/", views.session_sync),
    path("message/add/", views.message_add),
    path("message/read/", views.message_read),
    path("framed/", views.framed),
    path("wait/", views.wait),
    path("half-a-transaction/", views.half_a_transaction),
    path("write/<name>/", views.write),
    path("stubborn/", views.stubborn),
    path("stream/", views.stream),
    path("broken-stream/", views.broken_stream),
    path("error/", views.error),
    path("teapot/", views.teapot),
    path("background/", views.background),
    path("blocking/", views.blocking),
    path("context/", views.context),
    path("cache/", views.cached),
    path("upload/", views.upload),
    path("public/", views.public),
    path("large/", views.large),
]
