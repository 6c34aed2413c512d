"""Rows from CSV files, as spreadsheets and pandas write them."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

from prefine.data.json_rows import NOT_UTF8, TOO_LONG, StrictJson, bounded_lines, skip_space
from prefine.data.rows import (
    EXCERPT_CHARACTERS,
    MAX_ROW_BYTES,
    Problem,
    Row,
    RowError,
    has_lone_surrogate,
    rejected,
)
from prefine.errors import DataError
from prefine.json_reading import MAX_NESTING, nesting_exceeds

_NUMBER_COLUMNS = frozenset(
    {
        "preferred",
        "margin",
        "score_difference",
        "label",
        "chosen_score",
        "rejected_score",
        "score_chosen",
        "score_rejected",
        "tie",
    }
)
_CHAT_COLUMNS = frozenset({"prompt", "chosen", "rejected", "completion", "messages", "conversations"})
_MOST_COLUMNS = 10_000
_NUMBER = re.compile(r"-?[0-9]{1,300}(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
_TURN_KEY = re.compile(r"""["'](role|from)["']\s*:""")


class _RowTooLong(Exception):  # noqa: N818 - goes no further than this file
    """The lines of one row are more than MAX_ROW_BYTES together."""


class _CsvLines:
    """Feeds the csv module decoded lines and remembers what was wrong with those of the current row."""

    def __init__(self, stream: BinaryIO) -> None:
        self._lines = bounded_lines(stream)
        self.line = 0
        self._bytes = 0
        self.problem: Problem | None = None
        self.excerpt = ""

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        self.line, line, whole = next(self._lines)
        self._bytes += len(line)
        if self._bytes > MAX_ROW_BYTES and whole:
            raise _RowTooLong
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            self.problem = self.problem or NOT_UTF8
            text = line.decode("utf-8", "backslashreplace")
        if len(self.excerpt) < EXCERPT_CHARACTERS:
            self.excerpt += text[:EXCERPT_CHARACTERS]
        if not whole:
            self.problem = self.problem or TOO_LONG
            return "\n"
        return text

    def begin_row(self) -> None:
        """Forget the row before."""
        self.problem, self.excerpt, self._bytes = None, "", 0


def read_csv(stream: BinaryIO, file: str) -> Iterator[Row]:
    """One row for each CSV row under the header; `line` is the line the row starts on.

    An empty cell is null. Cells of columns that hold numbers, true/false or chat lists are read as such.

    Raises:
        DataError: the header is missing, unreadable or names a column twice.
    """
    # The module's own limit of 128 KiB a cell is less than a long answer; this one bounds memory as well.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
    lines = _CsvLines(stream)
    reader = csv.reader(lines, strict=True)
    header = _csv_header(reader, lines, file)
    while True:
        lines.begin_row()
        start = lines.line + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except _RowTooLong:
            yield rejected(file, start, TOO_LONG, lines.excerpt)
            continue
        except csv.Error as error:
            yield rejected(file, start, Problem("line", f"is not valid CSV: {error}"), lines.excerpt)
            continue
        if lines.problem is not None:
            yield rejected(file, start, lines.problem, lines.excerpt)
        elif cells:  # no cells: a blank line
            yield _csv_row(header, cells, lines.excerpt, file, start)


def _csv_header(reader: Any, lines: _CsvLines, file: str) -> list[str]:
    header: list[str] = []
    try:
        while not header:
            header = next(reader)
    except StopIteration:
        raise DataError(f"{file}: has no rows", "Write a header line and at least one row.") from None
    except (csv.Error, _RowTooLong) as error:
        found = "is longer than 8 MiB" if isinstance(error, _RowTooLong) else f"is not valid CSV: {error}"
        raise DataError(f"{file}: its header {found}", "Save the file as CSV again.") from None
    if lines.problem is not None:
        raise DataError(f"{file}: its header {lines.problem.reason}", "Save the file as UTF-8 CSV again.")
    if len(header) > _MOST_COLUMNS:
        raise DataError(
            f"{file}: its header has {len(header)} columns, more than {_MOST_COLUMNS}", "Leave out what is not needed."
        )
    names = [name.strip() or f"column {number}" for number, name in enumerate(header, 1)]
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{file}: its header names the column {twice[:80]!r} twice", "Rename one of the two.")
    return names


def _csv_row(header: list[str], cells: list[str], raw: str, file: str, line: int) -> Row:
    if len(cells) != len(header):
        found = f"has {len(cells)} cells where the header has {len(header)}"
        return rejected(file, line, Problem("line", found), raw)
    try:
        return Row(file, line, {name: _typed(name, cell) for name, cell in zip(header, cells, strict=True)})
    except RowError as error:
        return rejected(file, line, error.problem, raw)


def _typed(column: str, cell: str) -> Any:
    """A CSV cell as the value it would have in JSON."""
    if cell == "":
        return None
    if column in _NUMBER_COLUMNS:
        if cell.strip().lower() in {"true", "false"}:
            return cell.strip().lower() == "true"
        if _NUMBER.fullmatch(cell.strip()):
            return int(cell) if cell.strip().lstrip("-").isdigit() else float(cell)
    if column in _CHAT_COLUMNS and cell.lstrip().startswith("[{") and _TURN_KEY.search(cell):
        decoder = StrictJson()
        try:
            value, end, noted = decoder.decode_at(cell, skip_space(cell, 0))
        except (ValueError, RecursionError):
            raise RowError(column, "looks like a list of turns but is not valid JSON") from None
        if noted is not None or decoder.non_finite or nesting_exceeds(value, MAX_NESTING) or has_lone_surrogate(value):
            raise RowError(column, "looks like a list of turns but is not valid JSON")
        return value if end == len(cell.rstrip()) else cell
    return cell
