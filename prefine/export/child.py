"""Work of libraries that patch, print and exit as they like, in a process of its own, which ends with this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from prefine.engines.leash import leashed
from prefine.errors import ModelError
from prefine.export.room import refuse_full_disk

_LINES_QUOTED = 3
_REMEDY = "Use a newer auto-round or llama.cpp (PREFINE_LLAMA_CPP), or export with --to merged."
_KILLED = "Free some memory, or export on a machine with more of it."


def run_quietly(module: str, job: Path, what: str) -> None:
    """Run `python -m MODULE JOB` with this process's modules, and without a network.

    Args:
        module: its name.
        job: a file with what it is to do, in the folder that it writes to.
        what: what it does, for messages.

    Raises:
        ModelError: it fails; with its last lines.
        CheckpointError: the disk is full.
    """
    run_program([sys.executable, "-P", "-m", module, os.fspath(job)], job.parent, what)


def run_program(command: Sequence[str], folder: Path, what: str) -> None:
    """Run a program whose output nobody needs and that writes to `folder`; raises as `run_quietly`."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(  # noqa: S603 - our own module, or the program that was found
        leashed(command),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode:
        refuse_full_disk(folder, done.stdout, what)
        if done.returncode < 0:
            raise ModelError(f"{what} was ended by signal {-done.returncode}; was memory short?", _KILLED)
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()][-_LINES_QUOTED:]
        raise ModelError(f"{what} failed ({' | '.join(lines) or f'exit code {done.returncode}'})", _REMEDY)
