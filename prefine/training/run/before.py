"""Held-out results from before a run's first step, kept in a file with a hash.

Every later part of a run compares with them. A lost or damaged file must not be replaced by results of a half-trained
model: the model is measured again with the weights as they were loaded.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefine.json_reading import JsonError, read_json_object
from prefine.runs.atomic import JSON, json_bytes, write_json


class Before:
    """One run's file, read once and then held in memory.

    Attributes:
        value: the results; None if there are none yet, or the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.value: Any = None
        with suppress(OSError, JsonError):
            kept = read_json_object(path)
            if kept.get("sha256") == _hash(kept.get("value")):
                self.value = kept.get("value")

    def keep(self, value: JSON, *, write: bool) -> None:
        """Keep the first value, and write the file if `write` is set; later values are ignored."""
        if self.value is not None:
            return
        self.value = value
        if write:
            write_json(self._path, {"sha256": _hash(value), "value": value})


def _hash(value: JSON) -> str:
    return hashlib.sha256(json_bytes(value)).hexdigest()
