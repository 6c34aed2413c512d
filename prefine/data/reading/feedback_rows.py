"""Rows from databases of human feedback: `feedback.db` of `prefine serve`, and projects of `prefine annotate`.

docs/feedback.md and docs/annotation.md say what becomes of which event.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prefine.annotation import training_rows as annotation
from prefine.annotation.database import is_project
from prefine.data.reading.rows import Problem, Row
from prefine.errors import DataError
from prefine.feedback import database, training_rows
from prefine.feedback.training_rows import Wanted

__all__ = ["Wanted", "content_digest", "is_feedback", "read_feedback", "require_feedback"]


def is_feedback(path: Path) -> bool:
    """Whether the header of a file says that it is a database of human feedback."""
    return is_project(path) or database.is_feedback(path)


def require_feedback(path: Path) -> None:
    """Raise DataError unless the header of a file says that it is a database of human feedback."""
    if not is_project(path):
        database.require_feedback(path)


def content_digest(path: Path) -> str:
    """SHA-256 of all that could be trained on. The file's own bytes change without that, as its log is written back.

    Raises:
        DataError: it is not a database of human feedback, or cannot be read.
    """
    return annotation.content_digest(path) if is_project(path) else training_rows.content_digest(path)


def read_feedback(path: Path, wanted: Wanted | None, *, file: str) -> Iterator[Row]:
    """One row for each that the events give, and one that is left out for each event that gives none.

    `line` is the number of the event (a vote, a thumb, a correction), of a prompt that of the completion or item.

    Args:
        path: the database; a server may be writing it.
        wanted: what to read it as; None takes what its events are: preferences if there are any, else votes.
        file: how rows refer to it.

    Raises:
        DataError: it is not a database of human feedback, or cannot be read; nothing is in it.
    """
    row = None
    project = is_project(path)
    rows = annotation.annotation_rows(path, wanted) if project else training_rows.feedback_rows(path, wanted)
    for row in rows:
        left_out = None if row.unused is None else Problem(*row.unused)
        yield Row(file, row.number, row.value, left_out=left_out)
    if row is None and project:
        raise DataError(f"{file}: has no votes yet", "Judge answers with prefine annotate open first.")
    if row is None:
        raise DataError(f"{file}: has no feedback yet", "Give thumbs or corrections at prefine serve first.")
