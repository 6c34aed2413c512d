"""Files of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prefine.runs.atomic import require_writable, storage_errors, write_text


def write_files(files: Mapping[Path, str]) -> None:
    """Write texts in this order, with their folders.

    Raises:
        CheckpointError: one cannot be written; those that surely cannot be are found before any is.
    """
    for path in files:
        require_writable(path, folder_is_made=True)
    for path, text in files.items():
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
