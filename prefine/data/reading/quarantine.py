"""Where rejected rows go: a file a person can read, and counts by reason. No row is ever dropped in silence."""

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
# What differs from row to row within one reason: positions, and nothing else.
_POSITIONS = ((re.compile(r"\[\d+\]"), "[…]"), (re.compile(r"\b(turn|has) \d+\b"), r"\1 N"))


class Quarantine:
    """Collects rejected rows as JSON lines: file, line, field, reason, row.

    The file is begun anew with the first rejected row, and each row is flushed as it comes: after a crash all rows up
    to it are there. A run that rejects nothing leaves no file.

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
        """Rows set aside so far."""
        return self.reasons.total()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def add(self, file: str, line: int, problem: Problem, row: str | Mapping[str, Any]) -> str:
        """Set one row aside; `row` is its raw text or its value. Returns the reason it is counted under.

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
        """Inside, nothing is counted or written: rows are read again that have been."""
        self._muted = True
        try:
            yield
        finally:
            self._muted = False

    def state(self) -> dict[str, Any]:
        """What `go_to` needs to go on from here. The file is on the disk when this returns."""
        length = 0
        if self._stream is not None:
            os.fsync(self._stream.fileno())
            length = os.fstat(self._stream.fileno()).st_size
        return {"reasons": dict(self.reasons), "first": self.first, "bytes": length}

    def go_to(self, state: Mapping[str, Any]) -> None:
        """Go on where another one was: what it wrote later is dropped.

        Raises:
            DataError: the file lacks what it wrote before, or cannot be written.
        """
        self.reasons, self.first = Counter(state["reasons"]), dict(state["first"])
        if self.path is None or not state["bytes"]:
            return
        if not self.path.is_file() or self.path.stat().st_size < state["bytes"]:
            raise DataError(
                f"--resume: {self.path} lacks rows that the interrupted command wrote there",
                "Put it back, or begin anew without --resume.",
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
                # Anew, not appended: a resumed run reads the same rows again and would list them twice.
                self._stream = path.open("w", encoding="utf-8")
            self._stream.write(entry)
            self._stream.flush()
        except OSError as error:
            raise _unwritable(path, error) from error

    def close(self) -> None:
        """Close the file, if there is one. Counts stay; a row added later begins the file anew."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path}: rejected rows cannot be written: {error.strerror or error}",
        "Free some space or choose another folder.",
    )


def refusal_of(error: TemplateError) -> Problem:
    """Why a row that a chat template refused cannot be used: the field, where it is known, and the reason."""
    if isinstance(error, RefusedRowError):
        return Problem(error.field or "row", error.problem)
    return Problem("row", f"is refused by the chat template: {error.problem}")


def counted_reason(problem: Problem) -> str:
    """The problem as one of few reasons: the field and the rule, without positions in the row."""
    reason = printable(f"{problem.field} {problem.reason}")
    for pattern, replacement in _POSITIONS:
        reason = pattern.sub(replacement, reason)
    return reason


def excerpt(row: str | Mapping[str, Any]) -> str:
    """The start of a row as text, EXCERPT_CHARACTERS at most."""
    text = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False, default=str)
    return text[:EXCERPT_CHARACTERS]
