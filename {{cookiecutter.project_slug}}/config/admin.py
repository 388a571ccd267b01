from django.contrib import admin

urlpatterns, app_name, _ = admin.site.urls
