"""Hashes of what a source holds, so that changed data are recognised."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from prefine.data.reading.feedback_rows import content_digest
from prefine.data.reading.sources import Part
from prefine.runs.atomic import sha256_of_file


def content_hash(part: Part, hash_file: Callable[[Path], str] = sha256_of_file) -> str:
    """SHA-256 of a part's content; its name for a hub dataset and for rows in memory, whose name has a hash.

    Args:
        part: of a source.
        hash_file: the SHA-256 of a file.

    Raises:
        DataError: it is not a database of human feedback, or cannot be read.
        OSError: a file cannot be read.
    """
    path = part.path
    if path is None:
        return part.name
    if part.form == "feedback":
        return content_digest(path)
    if path.is_file():
        return hash_file(path)
    listed = sorted(each for each in path.rglob("*") if each.is_file())
    return hashlib.sha256("".join(hash_file(each) for each in listed).encode()).hexdigest()
