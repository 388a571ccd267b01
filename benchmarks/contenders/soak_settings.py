"""The generated service with Sentry, and with the views of the soak."""

import os

import sentry_sdk
from config.settings import *
from config.settings import INSTALLED_APPS

sentry_sdk.init(dsn=os.environ["SENTRY_DSN"], traces_sample_rate=0.02)

ROOT_URLCONF = "soak_urls"
INSTALLED_APPS = [*INSTALLED_APPS, "bench"]
# The soak speaks plain HTTP.
SESSION_COOKIE_SECURE = False
