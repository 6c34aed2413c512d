"""A row of a source before it is a record, and problems of single rows."""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prefine.json_reading import MAX_NESTING

MAX_ROW_BYTES = 8 * 1024 * 1024
"""Longest line read into memory, in bytes. A longer one is quarantined without being read completely."""

MAX_TEXT_CHARACTERS = 1024 * 1024
"""Longest text of one record, prompt and answers together. Tokenizers need about 400 bytes of memory for each
character.
"""

MAX_TURNS = 1_000
"""Most turns of one demonstration. Each learned turn is rendered with all turns before it: quadratic work."""

EXCERPT_CHARACTERS = 2_000
"""How much of a rejected row is shown in quarantine.jsonl."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a row cannot be used: the field, and a short reason that continues the sentence after the field's name."""

    field: str
    reason: str


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source. One of `value`, `problem` and `left_out` is set.

    A column of `value` that JSON cannot represent holds Unwritable; this matters only to readers of that column.
    `line` counts from 1: the line in .jsonl and .csv files (for .csv the line on which the row starts), the row
    number everywhere else. `raw` is the start of what was found, for rows with a problem. `left_out` says of a
    row that is valid why it has nothing for what is read.
    """

    file: str
    line: int
    value: dict[str, Any] | None
    problem: Problem | None = None
    raw: str = ""
    left_out: Problem | None = None


@dataclass(frozen=True, slots=True)
class Unwritable:
    """Stands for a value that JSON cannot represent, such as bytes or NaN.

    `reason` continues the sentence after the field's name. `form` replaces the value when the row is written.
    """

    reason: str
    form: Any = field(default=None, compare=False)


class RowError(Exception):
    """One row cannot be used. Never reaches the user: readers of rows quarantine the row."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.problem = Problem(field, reason)


def rejected(file: str, line: int, problem: Problem, raw: str) -> Row:
    """A row with a problem; `raw` is shortened to what quarantine shows."""
    return Row(file, line, None, problem, raw[:EXCERPT_CHARACTERS])


def kind_of(value: object) -> str:
    """The type of a JSON value in words."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case dict():
            return "an object"
    return f"a {type(value).__name__}"


def printable(text: str) -> str:
    """The text on one line, with control characters escaped."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def has_lone_surrogate(value: object) -> bool:
    """Whether any text in a JSON value cannot be encoded as UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def writable(columns: Mapping[str, Any]) -> dict[str, Any]:
    """The columns in their JSON form; Unwritable for a value without one."""
    found: dict[str, Any] = {}
    for name, value in columns.items():
        try:
            found[name] = value if isinstance(value, Unwritable) else _writable(value, name)
        except RecursionError:
            found[name] = Unwritable(f"nests deeper than {MAX_NESTING} levels")
    return found


def _writable(value: Any, name: str) -> Any:
    try:
        return json_plain(value, name)
    except RowError as error:
        return Unwritable(error.problem.reason, stated_form(value))


def json_plain(value: Any, name: str) -> Any:
    """The JSON form of a value from Arrow: dates as ISO text, decimals as numbers, bytes as text.

    Raises:
        RowError: a number that is not finite, bytes that are not UTF-8, or another value without a JSON form.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float | decimal.Decimal):
        number = float(value)
        if not math.isfinite(number):
            raise RowError(name, f"is {number}, not a finite number")
        return number
    if isinstance(value, dict):
        return {str(key): json_plain(item, name) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_plain(item, name) for item in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta | uuid.UUID):
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise RowError(name, "holds bytes that are not UTF-8 text") from None
    raise RowError(name, f"holds {kind_of(value)}, which has no JSON form")


def stated_form(value: Any) -> Any:
    """As `json_plain`, with substitutes for values that JSON cannot represent.

    `"NaN"`, `"Infinity"` and `"-Infinity"` for such numbers, `{"base64": …}` for bytes that are not UTF-8, and the
    name of its type for anything else.
    """
    if isinstance(value, dict):
        return {str(key): stated_form(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [stated_form(item) for item in value]
    try:
        return json_plain(value, "")
    except RowError:
        pass
    if isinstance(value, float | decimal.Decimal):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode("ascii")}
    return f"<{type(value).__module__}.{type(value).__qualname__}>"
