"""Rows from JSON lines and JSON arrays. In JSON lines a bad row does not affect others."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from prefine.data.reading.rows import (
    EXCERPT_CHARACTERS,
    MAX_ROW_BYTES,
    Problem,
    Row,
    has_lone_surrogate,
    kind_of,
    rejected,
    writable,
)
from prefine.errors import DataError
from prefine.json_reading import MAX_NESTING, complaint, nesting_exceeds

MAX_ARRAY_BYTES = 512 * 1024 * 1024
"""Largest .json array, in decompressed bytes: it is held in memory, unlike .jsonl."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SKIPPED_AT_ONCE = 1024 * 1024
TOO_LONG = Problem("line", f"is longer than {MAX_ROW_BYTES // 1024**2} MiB")
NOT_UTF8 = Problem("line", "is not valid UTF-8")
_TOO_DEEP = Problem("line", f"nests deeper than {MAX_NESTING} levels")
_JSON_SPACE = re.compile(r"[ \t\r\n]*")


def bounded_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes, bool]]:
    """Number, bytes and completeness of each line; a line over MAX_ROW_BYTES is truncated, never held completely."""
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        whole = len(line) <= MAX_ROW_BYTES or line.endswith(b"\n")
        if not whole:
            line = line[: 4 * EXCERPT_CHARACTERS]
            while (rest := stream.readline(_SKIPPED_AT_ONCE)) and not rest.endswith(b"\n"):
                pass
        yield number, line, whole


class StrictJson:
    """A JSON decoder that records what the standard one accepts: NaN, infinities, duplicate keys.

    Attributes:
        non_finite: whether the last decoded value holds NaN or an infinity, which are not JSON. It records instead of
            raising, because the end of a bad value is needed: in an array the next row starts there.
    """

    def __init__(self) -> None:
        self.non_finite = False
        self._noted: list[Problem] = []
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant, parse_float=self._number
        )

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            self._noted.append(Problem(twice[:80], "is given twice"))
        return value

    def _constant(self, name: str) -> float:
        self.non_finite = True
        return float(name)

    def _number(self, digits: str) -> float:
        number = float(digits)
        self.non_finite |= not math.isfinite(number)
        return number

    def decode_at(self, text: str, start: int) -> tuple[Any, int, Problem | None]:
        """The value that starts at `start`, its end, and its fault if it could be read all the same. Raises ValueError
        or RecursionError if it cannot be read.
        """
        self._noted.clear()
        self.non_finite = False
        value, end = self._decoder.raw_decode(text, start)
        return value, end, self._noted[0] if self._noted else None


def _checked_object(value: Any, noted: Problem | None, text: str, file: str, number: int, *, non_finite: bool) -> Row:
    """The row for a JSON value decoded from `text`."""
    problem = noted
    if problem is None and not isinstance(value, dict):
        problem = Problem("line", f"is {kind_of(value)}, not an object")
    # Cheap tests on the text come first; the exact ones walk the value.
    if problem is None and text.count("[") + text.count("{") > MAX_NESTING and nesting_exceeds(value, MAX_NESTING):
        problem = _TOO_DEEP
    if problem is None and ("\\ud" in text or "\\uD" in text) and has_lone_surrogate(value):
        problem = Problem("line", "has a lone surrogate (half of a character)")
    if problem is not None:
        return rejected(file, number, problem, text)
    return Row(file, number, writable(value) if non_finite else value)


def read_jsonl(stream: BinaryIO, file: str) -> Iterator[Row]:
    """One row for each line that is not blank, in bounded memory."""
    decoder = StrictJson()
    for number, line, whole in bounded_lines(stream):
        if whole and (not line or line.isspace()):  # no bytes: a byte order mark alone
            continue
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            problem = NOT_UTF8 if whole else TOO_LONG
            yield rejected(file, number, problem, line[: 4 * EXCERPT_CHARACTERS].decode("utf-8", "backslashreplace"))
            continue
        if not whole:
            yield rejected(file, number, TOO_LONG, text)
            continue
        yield _json_line(decoder, text, file, number)


def _json_line(decoder: StrictJson, text: str, file: str, number: int) -> Row:
    try:
        value, end, noted = decoder.decode_at(text, skip_space(text, 0))
    except RecursionError:
        return rejected(file, number, _TOO_DEEP, text)
    except ValueError as error:
        return rejected(file, number, Problem("line", complaint(error)), text)
    if skip_space(text, end) != len(text):
        noted = Problem("line", "is not valid JSON: text after the object")
    return _checked_object(value, noted, text, file, number, non_finite=decoder.non_finite)


def skip_space(text: str, start: int) -> int:
    """The next position from `start` that is not JSON white space."""
    match = _JSON_SPACE.match(text, start)
    return match.end() if match else start


def read_json_array(stream: BinaryIO, file: str) -> Iterator[Row]:
    """One row for each element of a JSON array; rows are numbered from 1.

    Raises:
        DataError: the file is not one JSON array, or it is over MAX_ARRAY_BYTES.
    """
    data = stream.read(MAX_ARRAY_BYTES + 1)
    if len(data) > MAX_ARRAY_BYTES:
        raise DataError(
            f"{file}: a .json array of more than {MAX_ARRAY_BYTES // 1024**2} MiB does not fit in memory",
            "Save it as .jsonl, one object a line, which is streamed.",
        )
    data = data.removeprefix(_BYTE_ORDER_MARK)
    try:
        text, well_formed = data.decode("utf-8"), True
    except UnicodeDecodeError:
        # Bytes that are not UTF-8 become lone surrogates, which are detected row by row.
        text, well_formed = data.decode("utf-8", "surrogateescape"), False
    del data
    start = skip_space(text, 0)
    if not text.startswith("[", start):
        raise DataError(
            f"{file}: starts with {text[start : start + 10]!r} where a .json file needs a [list of rows]",
            "Put the rows in one JSON array, or name the file .jsonl if it has one object a line.",
        )
    yield from _array_elements(text, start + 1, well_formed, file)


def _array_elements(text: str, position: int, well_formed: bool, file: str) -> Iterator[Row]:
    decoder = StrictJson()
    position, number = skip_space(text, position), 0
    if text.startswith("]", position):
        return
    while True:
        number += 1
        try:
            value, end, noted = decoder.decode_at(text, position)
        except RecursionError:
            raise _broken_array(text, position, file, f"row {number} nests too deep to be read") from None
        except json.JSONDecodeError as error:
            raise _broken_array(text, error.pos, file, error.msg[:1].lower() + error.msg[1:]) from None
        except ValueError as error:
            raise _broken_array(text, position, file, f"row {number} {complaint(error)}") from None
        element = text[position:end]
        if not well_formed and has_lone_surrogate(element):
            yield rejected(file, number, NOT_UTF8, element.encode("utf-8", "backslashreplace").decode())
        else:
            yield _checked_object(value, noted, element, file, number, non_finite=decoder.non_finite)
        position = skip_space(text, end)
        if text.startswith("]", position):
            break
        if not text.startswith(",", position):
            raise _broken_array(text, position, file, "a comma or the closing bracket is missing")
        position = skip_space(text, position + 1)
    if skip_space(text, position + 1) != len(text):
        raise _broken_array(text, position + 1, file, "text after the array")


def _broken_array(text: str, position: int, file: str, complaint: str) -> DataError:
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    return DataError(
        f"{file}: not valid JSON at line {line}, column {column}: {complaint}",
        "Write the array again, or save it as .jsonl, where a bad row does not affect others.",
    )
