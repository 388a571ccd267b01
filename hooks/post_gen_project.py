"""Remove what was not chosen; write .env with a fresh key."""

import secrets
import shutil
from pathlib import Path

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
            *("deploy/base/podmonitor.yaml", "serving/metrics.py"),
            "tests/test_metrics.py",
        ]
    },
    ("deploy", "{{ cookiecutter.deploy }}"): {
        "docker": ["deploy/base"],
        "none": [".dockerignore", "Dockerfile", "compose.yaml", "deploy/base"],
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
    dotenv.write_text(example.replace("SECRET_KEY=\n", key), encoding="utf-8")
