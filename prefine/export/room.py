"""Whether disk and memory suffice for an export, before any work."""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from pathlib import Path

import psutil

from prefine.errors import CheckpointError, ModelError

# How programs say that a disk has no room: the system's error by its number, or by its text.
_FULL = re.compile(r"os error (28|122)\b|Errno (28|122)\b|No space left on device|Disk quota exceeded")
# Less than this is left of a disk that a program has filled: it writes in pieces.
_LEFT_OF_A_FULL_DISK = 1 << 20
_SPARE_DISK = 64 << 20  # tokenizer, card, and what a file system keeps for itself


def require_disk(folder: Path, needed: int) -> None:
    """Raise CheckpointError unless `needed` bytes are free where a folder will be; it need not be there yet."""
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(there).free
    if free < needed + _SPARE_DISK:
        raise CheckpointError(
            f"{folder} needs {_gigabytes(needed + _SPARE_DISK)} of disk, and {_gigabytes(free)} are free there",
            "Free some space, or name a folder on another disk with --out.",
        )


def refuse_full_disk(folder: Path, said: str, what: str) -> None:
    """Raise CheckpointError where a program that has failed did so for want of disk.

    Not every library says why it could not write (numpy, C++ streams), so the disk is asked, too: what such a program
    has written is still there.

    Args:
        folder: that it writes to.
        said: what it printed.
        what: what it was doing, for the message.
    """
    if _FULL.search(said) or shutil.disk_usage(folder).free < _LEFT_OF_A_FULL_DISK:
        raise CheckpointError(
            f"{what} does not fit into {folder}: the disk is full",
            "Free some space there, or name a folder on another disk.",
        )


def require_memory(needed: int, what: str) -> None:
    """Raise ModelError unless so many bytes of memory are available."""
    available = available_memory()
    if available < needed:
        raise ModelError(
            f"{what} needs {_gigabytes(needed)} of memory, and {_gigabytes(available)} are available",
            "Close other programs, or export on a machine with more memory.",
        )


def available_memory(control_groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes of memory that this process can still take: what the machine has free, and a container's limit leaves.

    Args:
        control_groups: where Linux shows the limits of control groups (version 2).
        own: the file that names this process's group. Without these files there is no limit.
    """
    available = [int(psutil.virtual_memory().available)]
    with suppress(OSError):
        path = next((line[3:] for line in own.read_text("utf-8").splitlines() if line.startswith("0::")), "/")
        group = control_groups / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(control_groups):
                with suppress(OSError, ValueError):  # no limit ("max"), or the root, which has none
                    limit, used = (int((folder / f"memory.{name}").read_text()) for name in ("max", "current"))
                    available.append(max(0, limit - used + _cached(folder)))
    return min(available)


def _cached(group: Path) -> int:
    """Bytes of a group that are copies of files, which the system gives up when memory is asked for."""
    lines = (group / "memory.stat").read_text("utf-8").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
