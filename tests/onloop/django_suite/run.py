"""Run Django's own tests with onloop's handler and inlined middleware.

    uv run --with "django~=5.2.0" python tests/onloop/django_suite/run.py [suite ...]

Other arguments are passed to Django's runtests.py; a failure in a child process
is shown in full only with --parallel=1.

The tests are those of the installed Django. They come from its source distribution,
which the package index has and the wheel has not.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path

import django
from excluded import EXCLUDED

RUNTESTS = Path(__file__).resolve().parent / "runtests_onloop.py"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "django-tests"
SUITES = [
    "asgi",
    "middleware",
    "csrf_tests",
    "sessions_tests",
    "messages_tests",
    # The others make no request, and take most of the time of all suites.
    *(
        f"auth_tests.test_{name}"
        for name in (
            *("auth_backends", "basic", "context_processors", "decorators", "login"),
            *("middleware", "mixins", "remote_user", "signals", "views"),
        )
    ),
    "handlers",
    "signals",
    "redirects_tests",
    "flatpages_tests",
]
# What must have happened for the result to mean anything.
EVIDENCE = {
    "handler",
    "client",
    "async client",
    "AuthenticationMiddleware.process_request inline",
    "CommonMiddleware.process_request inline",
    "CommonMiddleware.process_response inline",
    "CommonMiddleware.process_response in a thread",
    "CsrfViewMiddleware.process_request inline",
    "CsrfViewMiddleware.process_response inline",
    "FlatpageFallbackMiddleware.process_response inline",
    "FlatpageFallbackMiddleware.process_response in a thread",
    "MessageMiddleware.process_request inline",
    "MessageMiddleware.process_response inline",
    "MessageMiddleware.process_response in a thread",
    "RedirectFallbackMiddleware.process_response inline",
    "RedirectFallbackMiddleware.process_response in a thread",
    "SessionMiddleware.process_request inline",
    "SessionMiddleware.process_response inline",
    "SessionMiddleware.process_response in a thread",
    "csrf view inline",
    "csrf view in a thread",
}


def source(version: str) -> Path:
    folder = CACHE / version
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            download(version, scratch)
            [archive] = Path(scratch).glob("*.tar.gz")
            with tarfile.open(archive) as tar:
                tar.extractall(scratch, filter="data")
            [unpacked] = Path(scratch).glob("*/tests")
            # Last, so that an interrupted run leaves nothing behind.
            unpacked.parent.rename(folder)
    return folder / "tests"


def download(version: str, folder: str) -> None:
    if find_spec("pip"):
        pip = [sys.executable, "-m", "pip"]
    elif uv := os.environ.get("UV", shutil.which("uv")):
        pip = [uv, "tool", "run", "--python", sys.executable, "pip"]
    else:
        sys.exit("The source of Django is downloaded with pip or uv; neither is here.")
    command = [*pip, "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-binary", "django", "--dest", folder]
    subprocess.run([*command, f"django=={version}"], check=True)


def main(arguments: list[str]) -> None:
    tests = source(django.get_version())
    with tempfile.TemporaryDirectory() as scratch:
        evidence = Path(scratch) / "evidence"
        evidence.touch()
        env = os.environ | {"ONLOOP_EVIDENCE": str(evidence)}
        # runtests.py would take these settings instead of its own.
        env.pop("DJANGO_SETTINGS_MODULE", None)
        process = subprocess.Popen(
            [sys.executable, RUNTESTS, "--parallel=2", *(arguments or SUITES)],
            cwd=tests,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        ran = 0
        for line in process.stdout:
            print(line, end="", flush=True)
            if found := re.match(r"Ran (\d+) tests?", line):
                ran = int(found[1])
        failed = process.wait()
        seen = set(evidence.read_text().splitlines())

    if arguments:
        # A part of the suites covers only a part, and which one is not recorded.
        missing = [] if any(s.endswith(" inline") for s in seen) else ["any inline"]
    else:
        missing = sorted((EVIDENCE | {f"excluded {t}" for t in EXCLUDED}) - seen)
    for reason in dict.fromkeys(EXCLUDED.values()):
        print(f"Excluded: {', '.join(t for t, r in EXCLUDED.items() if r == reason)}")
        print(f"    {reason}")
    print(f"Django {django.get_version()}: {ran} tests, {len(missing)} things unseen.")
    if missing:
        print("This did not happen, so the tests prove little:", *missing, sep="\n  ")
    if failed or missing or ran == 0:
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
