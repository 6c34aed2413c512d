"""Launches of several processes: whether all of them take part, and which one reports an error."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from prefine.errors import TrainingError

# The number of processes, in torchrun, Open MPI, Intel MPI and MVAPICH.
_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
_LOST = re.compile(r"gloo|NCCL|Connection (closed|reset) by peer|Connection refused|Broken pipe|TCPStore")
# torchrun and accelerate give each process a file for its error, in a folder of the launch: FOLDER/RANK/error.json.
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


def fewer_processes(running: int, environment: Mapping[str, str] = os.environ) -> str | None:
    """A warning if fewer processes train together than were launched; None otherwise.

    Args:
        running: processes that train together.
        environment: of this process.
    """
    sizes = [int(environment[name]) for name in _SIZES if environment.get(name, "").isdigit()]
    if sizes and sizes[0] > running:
        return f"{sizes[0]} processes were launched, but {running} of them train together. {_use_torchrun(sizes[0])}"
    # `accelerate launch --cpu --num_processes 2` starts one process unless it gets an MPI host file. That process gets
    # a port for the connection to the others.
    if not sizes and "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_PORT" in environment:
        return f"accelerate launch was asked for several processes and started one. {_use_torchrun('N')}"
    return None


def _use_torchrun(processes: int | str) -> str:
    return f"On a CPU use: torchrun --nproc-per-node {processes} -m prefine …"


@contextmanager
def lost_processes(processes: int) -> Iterator[None]:
    """Turn errors of communication with a process that has ended into a one-line TrainingError.

    Raises:
        TrainingError: another process of the launch has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if processes == 1 or not (type(error).__name__.startswith("Dist") or _LOST.search(str(error))):
            raise
        raise TrainingError(
            "another process of this launch has ended, so this one ends, too",
            "Its own message says why; without one it was killed, often because memory ran out. "
            "Checkpoints are kept: add --resume to the same launch.",
        ) from error


def launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is one of several of a launch."""
    return any(environment.get(name, "1") not in ("", "0", "1") for name in _SIZES)


def first_to_say(environment: Mapping[str, str] = os.environ) -> bool:
    """True for the first process of a launch on this machine that calls it, and always without a known launcher."""
    if not launched(environment) or not environment.get(_ERROR_FILE):
        return True
    try:
        (Path(environment[_ERROR_FILE]).parents[1] / "prefine-said-why").open("x").close()
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def launch_command(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> str:
    """The command that starts the same processes with these arguments, to be pasted into a shell."""
    if launched(environment) and "TORCHELASTIC_RUN_ID" in environment:
        each = environment.get("LOCAL_WORLD_SIZE", "N")
        return shlex.join(["torchrun", "--nproc-per-node", each, "-m", "prefine", *arguments])
    return shlex.join(["prefine", *arguments])
