"""Remove what was not chosen, write .env with a new key, and say what to do next."""

import io
import os
import secrets
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

KUBERNETES = ["deploy/base", "deploy/production", "deploy/staging"]
# What each answer removes. A path that is missing is an error.
REMOVE = {
    ("admin", "{{ cookiecutter.admin }}"): {
        "False": ["config/admin.py", "tests/test_users.py", "users"]
    },
    ("api", "{{ cookiecutter.api }}"): {
        "none": [
            *("home/api.py", "home/migrations", "home/models.py", "tests/test_api.py"),
        ]
    },
    ("database", "{{ cookiecutter.database }}"): {"sqlite": ["config/postgresql"]},
    ("metrics", "{{ cookiecutter.metrics }}"): {
        "none": [
            *("deploy/alerts.yaml", "deploy/dashboard.json"),
            *("deploy/base/servicemonitor.yaml", "serving/metrics.py"),
            "tests/test_metrics.py",
        ]
    },
    ("deploy", "{{ cookiecutter.deploy }}"): {
        "docker": KUBERNETES,
        "none": [".dockerignore", "Dockerfile", "compose.yaml", *KUBERNETES],
    },
    ("ci", "{{ cookiecutter.ci }}"): {
        "github": [".gitlab-ci.yml"],
        "gitlab": [".github"],
        "none": [".github", ".gitlab-ci.yml"],
    },
}


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    if not any(path.parent.iterdir()):
        path.parent.rmdir()


for (_, answer), removed in REMOVE.items():
    for name in removed.get(answer, []):
        remove(Path(name))

dotenv = Path(".env")
if not dotenv.exists():
    example = Path(".env.example").read_text(encoding="utf-8")
    key = f"SECRET_KEY={secrets.token_urlsafe(50)}\n"
    dotenv.touch(mode=0o600)
    text = example.replace("SECRET_KEY=\n", key)
    dotenv.write_text(text, encoding="utf-8", newline="\n")

# cruft has no such variable. To compare, it generates into a temporary folder, and
# prints a patch.
BY_CRUFT = "{{ '' if cookiecutter._output_dir is defined else 'yes' }}"
SCREEN = """
The service is in {path}

    cd {quoted}
    uv run manage.py runserver    serves it on http://127.0.0.1:8000/
    uv run pytest                 checks that everything works

The first start writes uv.lock: commit it with the rest. These answers can be changed
later, in .env: DATABASE_URL, LOG_FORMAT, RESPONSE_HEADER, RESPONSE_HEADER_WHEN and
SERVER_TIMING. README.md says more.
"""


def show_screen(path: Path) -> None:
    if BY_CRUFT and path.parent.parent == Path(tempfile.gettempdir()).resolve():
        return
    # The shells of Windows have only double quotes in common.
    quoted = f'"{path}"' if sys.platform == "win32" else shlex.quote(str(path))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # For a folder whose name the terminal cannot show.
        sys.stdout.reconfigure(errors="replace")
    try:
        print(SCREEN.format(path=path, quoted=quoted), flush=True)
    except OSError:
        # Nobody reads it. With an error cookiecutter would delete the service.
        os._exit(0)


show_screen(Path.cwd())
