"""Rejected rows: a readable file, and counts by reason. No row is dropped silently."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from prefine.data.reading.rows import EXCERPT_CHARACTERS, Problem, printable
from prefine.errors import DataError, RefusedRowError, TemplateError

_MOST_REASONS = 1_000
_OTHER_REASONS = "other reasons"
# The part of a reason that differs from row to row: positions.
_POSITIONS = ((re.compile(r"\[\d+\]"), "[…]"), (re.compile(r"\b(turn|has) \d+\b"), r"\1 N"))


class Quarantine:
    """Collects rejected rows as JSON lines: file, line, field, reason, row.

    The file is created at the first rejected row, and each row is flushed at once: after a crash the file has all rows
    up to then. A run that rejects nothing creates no file.

    Args:
        path: the file to write; None to count only.

    Attributes:
        reasons: rows by reason.
        first: file and line of each reason's first row.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.reasons: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self._muted = False
        self._stream: TextIO | None = None

    @property
    def total(self) -> int:
        """Rejected rows so far."""
        return self.reasons.total()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def add(self, file: str, line: int, problem: Problem, row: str | Mapping[str, Any]) -> str:
        """Quarantine a row; `row` is its raw text or its value. Returns the reason under which it is counted.

        Raises:
            DataError: the quarantine file cannot be written.
        """
        reason = counted_reason(problem)
        if reason not in self.reasons and len(self.reasons) >= _MOST_REASONS:
            reason = _OTHER_REASONS
        if self._muted:
            return reason
        self.reasons[reason] += 1
        self.first.setdefault(reason, f"{printable(file)}:{line}")
        if self.path is not None:
            entry = {
                "file": file,
                "line": line,
                "field": problem.field,
                "reason": problem.reason,
                "row": excerpt(row),
            }
            self._write(self.path, json.dumps(entry) + "\n")
        return reason

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Context in which nothing is counted or written, for rows that are read again."""
        self._muted = True
        try:
            yield
        finally:
            self._muted = False

    def state(self) -> dict[str, Any]:
        """The state from which `go_to` continues. The file is flushed to the disk when this returns."""
        length = 0
        if self._stream is not None:
            os.fsync(self._stream.fileno())
            length = os.fstat(self._stream.fileno()).st_size
        return {"reasons": dict(self.reasons), "first": self.first, "bytes": length}

    def go_to(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of an earlier quarantine; rows that it wrote after that are removed.

        Raises:
            DataError: the file lacks rows of that state, or cannot be written.
        """
        self.reasons, self.first = Counter(state["reasons"]), dict(state["first"])
        if self.path is None or not state["bytes"]:
            return
        if not self.path.is_file() or self.path.stat().st_size < state["bytes"]:
            raise DataError(
                f"--resume: {self.path} lacks rows that the interrupted command wrote there",
                "Restore it, or start over without --resume.",
            )
        try:
            os.truncate(self.path, state["bytes"])
            self._stream = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def _write(self, path: Path, entry: str) -> None:
        try:
            if self._stream is None:
                path.parent.mkdir(parents=True, exist_ok=True)
                # Replaced, not appended to: a resumed run reads the same rows again and would list them twice.
                self._stream = path.open("w", encoding="utf-8")
            self._stream.write(entry)
            self._stream.flush()
        except OSError as error:
            raise _unwritable(path, error) from error

    def close(self) -> None:
        """Close the file, if there is one. Counts stay; a row added later starts a new file."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path}: rejected rows cannot be written: {error.strerror or error}",
        "Free some space or choose another folder.",
    )


def refusal_of(error: TemplateError) -> Problem:
    """The problem of a row that the chat template refused: the field, if known, and the reason."""
    if isinstance(error, RefusedRowError):
        return Problem(error.field or "row", error.problem)
    return Problem("row", f"is refused by the chat template: {error.problem}")


def counted_reason(problem: Problem) -> str:
    """The reason under which a problem is counted: the field and the rule, without positions in the row."""
    reason = printable(f"{problem.field} {problem.reason}")
    for pattern, replacement in _POSITIONS:
        reason = pattern.sub(replacement, reason)
    return reason


def excerpt(row: str | Mapping[str, Any]) -> str:
    """The start of a row as text, at most EXCERPT_CHARACTERS."""
    text = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False, default=str)
    return text[:EXCERPT_CHARACTERS]
