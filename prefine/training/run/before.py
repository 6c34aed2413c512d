"""What the model said of held-out rows before its first step, kept in a file that proves to be whole.

Every later part of a run compares with it. A file that is lost or damaged must not be replaced by what a half-trained
model says: it is measured again with the weights as they were loaded.
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
        value: what was kept; None where there is nothing yet, or not what was written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.value: Any = None
        with suppress(OSError, JsonError):
            kept = read_json_object(path)
            if kept.get("sha256") == _hash(kept.get("value")):
                self.value = kept.get("value")

    def keep(self, value: JSON, *, write: bool) -> None:
        """Keep the first value, and write it down in the process that writes; later ones are ignored."""
        if self.value is not None:
            return
        self.value = value
        if write:
            write_json(self._path, {"sha256": _hash(value), "value": value})


def _hash(value: JSON) -> str:
    return hashlib.sha256(json_bytes(value)).hexdigest()
