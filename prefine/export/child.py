"""Work of libraries that patch, print and exit as they like, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from prefine.errors import ModelError

_LINES_QUOTED = 3
_REMEDY = "Use a newer auto-round or llama.cpp (PREFINE_LLAMA_CPP), or export with --to merged."


def run_quietly(module: str, job: Path, what: str) -> None:
    """Run `python -m MODULE JOB` with this process's modules, and without a network.

    Raises:
        ModelError: it fails; with its last lines.
    """
    run_program([sys.executable, "-P", "-m", module, os.fspath(job)], what)


def run_program(command: Sequence[str], what: str) -> None:
    """Run a program whose output nobody needs; raises as `run_quietly`."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(  # noqa: S603 - our own module, or the program that was found
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()][-_LINES_QUOTED:]
        raise ModelError(f"{what} failed ({' | '.join(lines) or f'exit code {done.returncode}'})", _REMEDY)
