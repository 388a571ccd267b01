"""Remove what was not chosen; write .env with a fresh key."""

import secrets
import shutil
from pathlib import Path

# Answer -> what to remove. A path that is missing is an error.
REMOVE = {
    "{{ cookiecutter.admin }}": {"False": ["config/admin.py"]},
    "{{ cookiecutter.database }}": {"sqlite": ["tests/postgresql.py"]},
    "{{ cookiecutter.deploy }}": {
        "none": ["Dockerfile", ".dockerignore", "compose.yaml"],
    },
    "{{ cookiecutter.ci }}": {
        "github": [".gitlab-ci.yml"],
        "gitlab": [".github"],
        "none": [".gitlab-ci.yml", ".github"],
    },
}


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


for answer, choices in REMOVE.items():
    for name in choices.get(answer, []):
        remove(Path(name))

dotenv = Path(".env")
if not dotenv.exists():
    example = Path(".env.example").read_text(encoding="utf-8")
    key = f"SECRET_KEY={secrets.token_urlsafe(50)}\n"
    dotenv.touch(mode=0o600)
    dotenv.write_text(example.replace("SECRET_KEY=\n", key), encoding="utf-8")
