"""Django's tests that say nothing about the asynchronous chain, and why."""

from fnmatch import fnmatchcase

import django

SYNC_REMOTE_USER = """\
The synchronous client passes REMOTE_USER in the WSGI environment. On the \
asynchronous chain, Django 5.2's RemoteUserMiddleware (it is asynchronous itself, \
so that nothing of onloop's runs) reads it from a header. Each has a twin, *_async, \
that sends the header and runs. The same tests fail on Django's own asynchronous \
chain."""

EXCLUDED: dict[str, str] = {}
if django.VERSION < (6,):
    EXCLUDED |= {
        f"auth_tests.test_remote_user.*.{name}": SYNC_REMOTE_USER
        for name in (
            "test_header_disappears",
            "test_inactive_user",
            "test_known_user",
            "test_last_login",
            "test_unknown_user",
            "test_user_switch_forces_new_login",
        )
    }


def excluded_by(test: str) -> str | None:
    return next((pattern for pattern in EXCLUDED if fnmatchcase(test, pattern)), None)
