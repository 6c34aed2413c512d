"""Holds the lock of a folder that is to be moved or deleted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefine.errors import CheckpointError
from prefine.runs.ownership import LOCK_NAME

try:
    import fcntl
except ImportError:  # Windows: runs have no lock
    fcntl = None  # type: ignore[assignment]


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder that a run or an evaluation writes, so that it can be moved or deleted.

    A folder without a lock file is written by no process.

    Raises:
        CheckpointError: another process writes it.
    """
    lock = folder / LOCK_NAME
    if fcntl is None or not lock.is_file():
        yield
        return
    with lock.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"{folder} is in use by another process", "Wait for it to end, or choose another name."
            ) from None
        except OSError:  # a network file system without locks
            pass
        yield
