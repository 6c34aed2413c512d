"""Rows from CSV and TSV files, as spreadsheets and pandas write them."""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from prefine.data.reading.json_rows import NOT_UTF8, TOO_LONG, StrictJson, bounded_lines, skip_space
from prefine.data.reading.rows import (
    EXCERPT_CHARACTERS,
    MAX_ROW_BYTES,
    Problem,
    Row,
    RowError,
    has_lone_surrogate,
    rejected,
)
from prefine.data.reading.text_files import Buffered, Note
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
        # of public data sets, in lower case
        *("rank", "choice", "labels", "kto_tag", "weight", "train", "loss", "preference_strength"),
        *("overall_preference", "score_a", "score_b", "score_0", "score_1"),
        *("winner_model_a", "winner_model_b", "winner_tie", "deleted", "review_result"),
    }
)
_CHAT_COLUMNS = frozenset(
    {
        *("prompt", "chosen", "rejected", "completion", "messages", "conversations", "context", "history"),
        *("conversation_a", "conversation_b", "preferred_output", "non_preferred_output", "rejected_messages"),
    }
)
_MOST_COLUMNS = 10_000
_NUMBER = re.compile(r"-?[0-9]{1,300}(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
_TURN_KEY = re.compile(r"""["'](role|from)["']\s*:""")
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_LOOKED_AT_BYTES = 64 * 1024
_LOOKED_AT_ROWS = 50
# A first line that tells spreadsheets the delimiter; it is not a row.
_DELIMITER_LINE = re.compile("\ufeff?sep=(.)\r?\n?")


class _RowTooLong(Exception):  # noqa: N818 - caught in this file
    """A row is longer than MAX_ROW_BYTES."""


class _CsvLines:
    """Gives the csv module decoded lines and remembers the problem of the current row."""

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


def read_csv(
    stream: Buffered, file: str, note: Note, *, delimiter: str | None = None, usual: str = ","
) -> Iterator[Row]:
    """One row for each CSV row after the header; `line` is the line on which the row starts.

    An empty cell is null. Cells of columns that hold numbers, true/false or chat lists are read as such. With
    semicolons as delimiter, a comma in a number is a decimal comma.

    Args:
        stream: UTF-8.
        file: its name.
        note: called with a sentence on the detected delimiter, if it is not the usual one.
        delimiter: between cells; None: from a line `sep=;`, else the one that gives most rows as many cells as the
            header.
        usual: the delimiter if several fit equally well.

    Raises:
        DataError: the header is missing, unreadable or names a column twice.
    """
    # The csv module's default limit of 128 KiB a cell is less than a long answer; this one bounds memory, too.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
    first = stream.peek(_LOOKED_AT_BYTES)[:_LOOKED_AT_BYTES].decode("utf-8", "replace")
    told = _DELIMITER_LINE.fullmatch(first.partition("\n")[0])
    part = delimiter or (told[1] if told else _found_delimiter(first, usual))
    if delimiter is None and part != usual:
        note(f"its cells are separated by {_DELIMITERS.get(part, repr(part))}; if not, set data.delimiter")
    lines = _CsvLines(cast(BinaryIO, stream))
    if told:
        next(lines)
    reader = csv.reader(lines, strict=True, delimiter=part)
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
            yield _csv_row(header, cells, lines.excerpt, file, start, decimal_comma=part == ";")


def _found_delimiter(start: str, usual: str) -> str:
    """The delimiter that gives a header of several columns and most of the first rows as many cells."""

    def suits(delimiter: str) -> tuple[bool, float, bool]:
        try:
            rows = [row for row in csv.reader(io.StringIO(start, newline=""), delimiter=delimiter) if row]
        except csv.Error:
            return False, 0.0, False
        header, *others = rows[:_LOOKED_AT_ROWS] or [[]]
        alike = sum(len(row) == len(header) for row in others)
        return len(header) > 1, alike / max(1, len(others)), delimiter == usual

    return max([usual, *(each for each in _DELIMITERS if each != usual)], key=suits)


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
        raise DataError(
            f"{file}: its header {lines.problem.reason}",
            "Name the file's encoding with data.encoding, or save it as UTF-8.",
        )
    if len(header) > _MOST_COLUMNS:
        raise DataError(
            f"{file}: its header has {len(header)} columns, more than {_MOST_COLUMNS}",
            "Remove columns that are not needed.",
        )
    names = [name.strip() or f"column {number}" for number, name in enumerate(header, 1)]
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{file}: its header names the column {twice[:80]!r} twice", "Rename one of the two.")
    return names


def _csv_row(header: list[str], cells: list[str], raw: str, file: str, line: int, *, decimal_comma: bool) -> Row:
    if len(cells) != len(header):
        found = f"has {len(cells)} cells where the header has {len(header)}"
        return rejected(file, line, Problem("line", found), raw)
    try:
        return Row(
            file, line, {n: typed_cell(n.lower(), cell, decimal_comma) for n, cell in zip(header, cells, strict=True)}
        )
    except RowError as error:
        return rejected(file, line, error.problem, raw)


def typed_cell(column: str, cell: str, decimal_comma: bool = False) -> Any:
    """A CSV cell as the value it would have in JSON.

    Raises:
        RowError: what looks like a list of turns is not one.
    """
    if cell == "":
        return None
    if column in _NUMBER_COLUMNS:
        word = cell.strip().lower()
        if word in {"true", "false"}:
            return word == "true"
        number = word.replace(",", ".", 1) if decimal_comma else word
        if _NUMBER.fullmatch(number):
            value = int(number) if number.lstrip("-").isdigit() else float(number)
            return value if math.isfinite(value) else cell  # 1e999 stays text
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
