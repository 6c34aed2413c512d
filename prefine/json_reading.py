"""Reads foreign or damaged JSON; every fault raises one kind of error.

`json.loads` alone raises RecursionError for deep nesting, UnicodeDecodeError for other encodings and a bare ValueError
for a number of 5,000 digits, and a value nested 900 levels deep breaks code that walks or writes it later.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MAX_NESTING = 64
"""Deepest nesting of lists and objects. Deeper values would exhaust the stack of code that walks or writes them."""

MAX_FILE_BYTES = 64 * 1024 * 1024
"""Largest JSON file that is read: far above any config, manifest or summary."""


class JsonError(ValueError):
    """Text that is not JSON, or not safe to load. Continues the sentence after the name of the file ("is …")."""


def parse_json(data: bytes | str) -> Any:
    """The value of one JSON text in UTF-8.

    Raises:
        JsonError: it is not UTF-8 or not JSON, has a number with too many digits, or nests deeper than MAX_NESTING.
    """
    try:
        value = json.loads(data if isinstance(data, str) else data.decode("utf-8-sig"))
    except RecursionError:
        raise JsonError(f"nests deeper than {MAX_NESTING} levels") from None
    except UnicodeDecodeError:
        raise JsonError("is not valid UTF-8") from None
    except ValueError as error:
        raise JsonError(complaint(error)) from None
    if nesting_exceeds(value, MAX_NESTING):
        raise JsonError(f"nests deeper than {MAX_NESTING} levels")
    return value


def read_json(path: Path) -> Any:
    """The value of a JSON file of at most MAX_FILE_BYTES.

    Raises:
        OSError: it cannot be read.
        JsonError: as `parse_json`, or the file is larger.
    """
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise JsonError(f"is larger than {MAX_FILE_BYTES // 1024**2} MiB")
    return parse_json(data)


def read_json_object(path: Path) -> dict[str, Any]:
    """As `read_json`, of a file that must hold an object.

    Raises:
        OSError: it cannot be read.
        JsonError: as `read_json`, or it holds something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise JsonError("is not a JSON object")
    return value


def complaint(error: ValueError) -> str:
    """A JSON decoder's message without the position, so that reasons can be counted."""
    if isinstance(error, json.JSONDecodeError):
        told = error.msg.removesuffix(" at").removesuffix(" starting")
        return f"is not valid JSON: {told[:1].lower()}{told[1:]}"
    return "has a number with too many digits"


def nesting_exceeds(value: object, limit: int) -> bool:
    """Whether lists and objects nest deeper than `limit` levels. Needs no recursion itself."""
    level: list[object] = [value]
    for _ in range(limit):
        deeper: list[object] = []
        for item in level:
            if isinstance(item, dict):
                deeper.extend(item.values())
            elif isinstance(item, list):
                deeper.extend(item)
        if not deeper:
            return False
        level = deeper
    return any(isinstance(item, dict | list) for item in level)
