"""The service's settings as generated, whatever .env says."""

import atexit
import os
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

# An empty variable counts as unset, and still takes precedence over .env.
example = Path(__file__).parent.parent / ".env.example"
for line in example.read_text(encoding="utf-8").splitlines():
    name, equals, _ = line.removeprefix("#").partition("=")
    if equals and name.isupper() and name != "DATABASE_URL":
        os.environ.setdefault(name, "")
# % if cookiecutter.database == "postgresql"
os.environ["DATABASE_URL"] = os.environ.get("DATABASE_URL") or "embedded://"
# % endif
os.environ["SECRET_KEY"] = "only for tests, and as long as a key of production"

try:
    from config.settings import *
except ImproperlyConfigured as error:
    sys.exit(f"{error}")

# Of each run, because two may run at once; created when a test saves a file.
MEDIA_ROOT = Path(tempfile.gettempdir(), secrets.token_hex())
atexit.register(shutil.rmtree, MEDIA_ROOT, ignore_errors=True)
# For the live server; test clients need none.
ALLOWED_HOSTS = ["127.0.0.1"]
# % if cookiecutter.metrics == "prometheus"
METRICS_PORT = 0
# % endif
# % if cookiecutter.admin
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
# % endif
# % if cookiecutter.__static
# Tests do not run collectstatic.
SERVESTATIC_USE_FINDERS = True
STORAGES["staticfiles"] = {
    "BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"
}
# % endif
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    # Django never closes one in memory, and Python 3.13 warns about unclosed ones.
    DATABASES["default"]["TEST"] = {"NAME": MEDIA_ROOT.with_suffix(".sqlite3")}
