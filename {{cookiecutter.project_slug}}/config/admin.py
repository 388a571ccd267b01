from django.conf import settings
from django.contrib import admin

admin.site.site_header = admin.site.site_title = settings.PROJECT_NAME
urlpatterns, app_name, _ = admin.site.urls
