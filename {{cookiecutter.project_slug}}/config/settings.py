from pathlib import Path

import django_stubs_ext

from config.backends import parse_cache_url, parse_database_url, parse_email_url
from config.environment import HOSTS, ORIGINS, Environment
from serving.header import CONDITIONS

# Makes ModelAdmin[Order] and the like, which mypy requires, work at run time too.
django_stubs_ext.monkeypatch()

BASE_DIR = Path(__file__).resolve().parent.parent
PROJECT_NAME = "{{ cookiecutter.__project_name }}"  # fmt: skip
# The environment overrides these, as does .env in development.
defaults = {
    # % if cookiecutter.database == "sqlite"
    "DATABASE_URL": "sqlite:///db.sqlite3",
    # % endif
    "CACHE_URL": "locmem://",
    "EMAIL_URL": "smtp://localhost:25",
    "MEDIA_ROOT": "media",
    "LOG_FORMAT": "{{ cookiecutter.log_format }}",
    "LOG_LEVEL": "INFO",
    "RESPONSE_HEADER": "{{ cookiecutter.__response_header }}",
    "RESPONSE_HEADER_WHEN": "{{ cookiecutter.header_condition }}",
    "SERVER_TIMING": "{{ cookiecutter.server_timing }}",
    "REQUEST_THREADS": "40",
    # % if cookiecutter.metrics == "prometheus"
    "METRICS_PORT": "9464",
    # % endif
    "SECURE_HSTS_SECONDS": "0",
}
env = Environment(BASE_DIR / ".env", defaults)
SERVICE = "{{ cookiecutter.project_slug }}"
DEBUG = env.boolean("DEBUG")
if DEBUG:
    env.defaults["EMAIL_URL"] = "console://"
    # % if cookiecutter.database == "postgresql"
    env.defaults["DATABASE_URL"] = "embedded://"
    # % endif
SECRET_KEY = env.secret_key("SECRET_KEY", DEBUG)
ALLOWED_HOSTS = env.items("ALLOWED_HOSTS", *HOSTS)
CSRF_TRUSTED_ORIGINS = env.items("CSRF_TRUSTED_ORIGINS", *ORIGINS)
DATABASES = {"default": env.url("DATABASE_URL", parse_database_url)}
CACHES = {"default": env.url("CACHE_URL", parse_cache_url)}
globals().update(env.url("EMAIL_URL", parse_email_url))  # MAILERS, or EMAIL_*
MEDIA = r"media|(/|[A-Z]:[\\/]).+", "use an absolute path"
MEDIA_ROOT = BASE_DIR / env.matching("MEDIA_ROOT", *MEDIA)
SECURE_SSL_REDIRECT = env.boolean("SECURE_SSL_REDIRECT")
SECURE_HSTS_SECONDS = env.integer("SECURE_HSTS_SECONDS")
SECURE_HSTS_INCLUDE_SUBDOMAINS = env.boolean("SECURE_HSTS_INCLUDE_SUBDOMAINS")
SECURE_HSTS_PRELOAD = env.boolean("SECURE_HSTS_PRELOAD")
# % if cookiecutter.django_version == "6.1"
SECURE_CSP = {
    "default-src": ["'self'"],
    "style-src": ["'self'", "<CSP_NONCE_SENTINEL>"],
    # % if cookiecutter.api == "ninja"
    "img-src": ["'self'", "data:"],  # for icons of the API's UI
    # % endif
    "object-src": ["'none'"],
    "base-uri": ["'none'"],
    "form-action": ["'self'"],
    "frame-ancestors": ["'none'"],
}
# % endif
CSRF_COOKIE_SECURE = SESSION_COOKIE_SECURE = not DEBUG
if not DEBUG:
    CSRF_FAILURE_VIEW = "serving.errors.csrf_failure"
LOG_FORMAT = env.choice("LOG_FORMAT", ["text", "logfmt", "json"])
LOG_LEVEL = env.choice("LOG_LEVEL", ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"])
RESPONSE_HEADER = env.header("RESPONSE_HEADER")
RESPONSE_HEADER_WHEN = env.choice("RESPONSE_HEADER_WHEN", CONDITIONS)
SERVER_TIMING = env.choice("SERVER_TIMING", ["debug", "always", "never"])
REQUEST_TIMEOUT = env.seconds("REQUEST_TIMEOUT")
REQUEST_THREADS = env.integer("REQUEST_THREADS", least=1)
# % if cookiecutter.metrics == "prometheus"
PORT = r"\d{1,4}|[1-5]\d{4}|6([0-4]\d{3}|5([0-4]\d\d|5([0-2]\d|3[0-5])))"
METRICS_PORT = int(env.matching("METRICS_PORT", PORT, "use a port, 0 for no metrics"))
# % endif
if (BASE_DIR / "compose.yaml").exists():  # it reads these from .env
    env.known.update(["FORWARDED_ALLOW_IPS", "POSTGRES_PASSWORD"])
env.refuse_unknown()  # after the last setting from the environment

INSTALLED_APPS = [
    # First, so that its runserver takes precedence.
    "onloop",
    "serving",
    "home",
    # % if cookiecutter.admin
    "users",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    # % endif
    # % if cookiecutter.__static
    "django.contrib.staticfiles",
    "servestatic",
    # % endif
    # % if cookiecutter.api == "ninja"
    "ninja",
    # % endif
]
MIDDLEWARE = [
    "serving.middleware.LogMiddleware",
    # % if cookiecutter.metrics == "prometheus"
    "serving.metrics.MetricsMiddleware",
    # % else
    "serving.middleware.TimingMiddleware",
    # % endif
    "serving.middleware.HeaderMiddleware",
    "serving.middleware.deadline",
    "serving.health.probes",
    "django.middleware.security.SecurityMiddleware",
    # % if cookiecutter.django_version == "6.1"
    "django.middleware.csp.ContentSecurityPolicyMiddleware",
    # % endif
    # % if cookiecutter.__static
    "servestatic.middleware.ServeStaticMiddleware",
    # % endif
    # % if cookiecutter.admin
    "django.contrib.sessions.middleware.SessionMiddleware",
    # % endif
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    # % if cookiecutter.admin
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    # % endif
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    # % if cookiecutter.api == "ninja"
    "home.api.method_not_allowed",
    # % endif
]
# Entries of MIDDLEWARE that may leave the event loop without a warning.
SYNC_MIDDLEWARE: list[str] = []
ROOT_URLCONF = "config.urls"
ASGI_APPLICATION = "config.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                # % if cookiecutter.django_version == "6.1"
                "django.template.context_processors.csp",
                # % endif
                # % if cookiecutter.admin
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                # % endif
            ],
        },
    },
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
# % if cookiecutter.admin
AUTH_USER_MODEL = "users.User"
LOGIN_URL = "admin:login"
validators = "UserAttributeSimilarity MinimumLength CommonPassword NumericPassword"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}Validator"}
    for name in validators.split()
]
# % endif
# % if cookiecutter.__static
STATIC_URL = "static/"
STATIC_ROOT = BASE_DIR / "staticfiles"
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {
        "BACKEND": "servestatic.storage.CompressedManifestStaticFilesStorage"
    },
}
# % endif
LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"()": "serving.apps.formatter"}},
    "handlers": {"stderr": {"()": "onloop.logging.QueueHandler", "formatter": "line"}},
    "root": {"level": LOG_LEVEL, "handlers": ["stderr"]},
    "loggers": {
        # Remove the handlers that Django and uvicorn install.
        "django": {"handlers": [], "level": "NOTSET"},
        "uvicorn": {"handlers": [], "level": "NOTSET", "propagate": True},
        # The timing line replaces it.
        "uvicorn.access": {"handlers": [], "propagate": False},
        # At DEBUG they log every query, absent variable and synchronous middleware.
        "django.db.backends": {"level": "INFO"},
        "django.template": {"level": "INFO"},
        "asyncio": {"level": "INFO"},
    },
}
