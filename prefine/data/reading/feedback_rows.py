"""Rows from `feedback.db`, which `prefine serve` writes; docs/feedback.md says what becomes of which event."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prefine.data.reading.rows import Problem, Row
from prefine.errors import DataError
from prefine.feedback.database import is_feedback, require_feedback
from prefine.feedback.training_rows import Wanted, content_digest, feedback_rows

__all__ = ["Wanted", "content_digest", "is_feedback", "read_feedback", "require_feedback"]


def read_feedback(path: Path, wanted: Wanted | None, *, file: str) -> Iterator[Row]:
    """One row for each that the events give, and one that is left out for each event that gives none.

    `line` is the number of the event, of a prompt that of the completion.

    Args:
        path: the database; a server may be writing it.
        wanted: what to read it as; None takes preferences if there are any, else votes.
        file: how rows refer to it.

    Raises:
        DataError: it is not a feedback database, or cannot be read; nothing is in it.
    """
    row = None
    for row in feedback_rows(path, wanted):
        left_out = None if row.unused is None else Problem(*row.unused)
        yield Row(file, row.number, row.value, left_out=left_out)
    if row is None:
        raise DataError(f"{file}: has no feedback yet", "Give thumbs or corrections at prefine serve first.")
