"""Whether disk and memory suffice for an export, before any work."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil

from prefine.errors import CheckpointError, ModelError

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


def require_memory(needed: int, what: str) -> None:
    """Raise ModelError unless so many bytes of memory are available."""
    available = psutil.virtual_memory().available
    if available < needed:
        raise ModelError(
            f"{what} needs {_gigabytes(needed)} of memory, and {_gigabytes(available)} are available",
            "Close other programs, or export on a machine with more memory.",
        )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
