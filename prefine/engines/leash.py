"""Becomes another program that ends when its parent does, even when the parent is killed.

Run as a file, so that it starts in milliseconds: `python -I leash.py PARENT_PID PROGRAM [ARGUMENT …]`. On Linux the
kernel sends the program SIGTERM when the thread that started it ends (prctl(2), PR_SET_PDEATHSIG; kept by execve).
Elsewhere only a parent that ends in order stops it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_SET_PARENT_DEATH_SIGNAL = 1


def leashed(command: Sequence[str]) -> list[str]:
    """A command that ends when this process is killed; on Windows, the command itself."""
    return list(command) if os.name == "nt" else [sys.executable, "-I", __file__, str(os.getpid()), *command]


def main(arguments: list[str]) -> int:
    parent, command = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before the line above
            return 1
    try:
        os.execvp(command[0], command)  # noqa: S606 - the command is prefine's own
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
