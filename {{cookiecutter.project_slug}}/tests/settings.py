"""The service's settings as generated, whatever .env says."""

import atexit
import os
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

# For each run, because two may run at once: in an editor and in a terminal.
folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
atexit.register(folder.cleanup)
if "pytest" not in sys.modules:  # mypy, or a server: they end without atexit
    folder.cleanup()
MEDIA_ROOT = Path(folder.name, "media")
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
    DATABASES["default"]["TEST"] = {"NAME": Path(folder.name, "test.sqlite3")}
