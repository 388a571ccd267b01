"""Find Python interpreters, including installed ones that are not on the PATH."""

import os
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from uv import find_uv_bin

UV = find_uv_bin()


@cache
def find(minimum: str, newest: bool = False) -> str:
    """The path of an interpreter of at least this version, such as "3.12"."""
    path = os.environ["PATH"]
    if pyenv := shutil.which("pyenv"):
        # `pyenv root` depends on HOME, and pyenv's shims are not interpreters.
        versions = Path(pyenv).resolve().parent.parent / "versions"
        folders = sorted(versions.glob("3.*/bin"), key=_version, reverse=newest)
        path = os.pathsep.join([*map(str, folders), *_without_shims(path)])
    # uv prefers the newest of those that it has installed itself.
    for request in [f">={minimum}"] if newest else [f"~={minimum}.0", f">={minimum}"]:
        found = subprocess.run(
            [UV, "python", "find", "--no-project", "--system", request],
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        if not found.returncode:
            return found.stdout.strip()
    raise LookupError(
        f"Python {minimum} or newer is needed and was not found: install it, "
        f"or put it on the PATH. {found.stderr.strip()}"
    )


@cache
def uv_folder() -> Path:
    """A folder for the PATH that holds uv and nothing else."""
    folder = Path(tempfile.mkdtemp())
    (folder / "uv").symlink_to(UV)
    return folder


@cache
def uv_cache() -> str:
    """The folder of uv's cache, for processes with another HOME."""
    done = subprocess.run(
        [UV, "cache", "dir"], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def _version(folder: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", folder.parent.name)]


def _without_shims(path: str) -> list[str]:
    return [folder for folder in path.split(os.pathsep) if Path(folder).name != "shims"]
