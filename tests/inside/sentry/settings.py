"""With the lines that Sentry's documentation asks for."""

import sentry_sdk  # type: ignore[import-not-found]
from request_path.settings import *

from . import backend

ROOT_URLCONF = "sentry.urls"

sentry_sdk.init(
    dsn=backend.start(),
    traces_sample_rate=1.0,
    data_collection={"user_info": True},
)
