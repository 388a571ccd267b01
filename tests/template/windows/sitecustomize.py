"""Imported by each Python of a service: remove what Windows does not have.

test_windows.py also sets an encoding other than UTF-8. Backslashes in paths, the console
of Windows and its event loop are not imitated.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

POSIX = "fcntl grp pty pwd resource syslog termios tty uvloop"
sys.modules.update(dict.fromkeys(POSIX.split()))  # type: ignore[arg-type]
FUNCTIONS = "fork forkpty killpg mkfifo register_at_fork setsid"
for name in FUNCTIONS.split():
    delattr(os, name)
for name in ("SIGALRM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"):
    delattr(signal, name)
# On Windows, terminate() gives a process no time to clean up.
subprocess.Popen.terminate = subprocess.Popen.kill  # type: ignore[method-assign]


def unless_open(function: Any) -> Any:
    """Windows removes and renames no file that is open."""

    def refuse_open(path: Any, *args: Any, **kwargs: Any) -> Any:
        descriptors = Path("/proc/self/fd").iterdir()
        if not kwargs and os.path.realpath(path) in map(os.path.realpath, descriptors):
            raise PermissionError(f"{path} is open")
        return function(path, *args, **kwargs)

    return refuse_open


for name in ("remove", "rename", "replace", "unlink"):
    setattr(os, name, unless_open(getattr(os, name)))
