"""Suggestions for mistyped names of folders and files."""

from __future__ import annotations

import os
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Literal

# Folders with more entries are not searched.
_MOST_ENTRIES = 10_000
# "dop" is as near to "dpo": two letters of three, in order.
_CLOSE = 0.65


def similar_path(name: str) -> str | None:
    """An existing path with a similar name in every part; None if the path exists, or nothing is similar."""
    path = Path(name)
    found = Path(path.anchor)
    try:
        for part in path.parts[1:] if path.anchor else path.parts:
            if (found / part).exists():
                found /= part
                continue
            entries = [entry.name for entry in islice(os.scandir(found), _MOST_ENTRIES)]
            close = get_close_matches(part, entries, 1, _CLOSE)
            if not close:
                return None
            found /= close[0]
    except (OSError, ValueError):  # no permission, or an invalid name
        return None
    return None if found == path or not name else str(found)


def in_hub_cache(kind: Literal["models", "datasets"], name: str) -> bool:
    """Whether this hub id is in the local hub cache."""
    from huggingface_hub import constants

    return (Path(constants.HF_HUB_CACHE) / f"{kind}--{name.replace('/', '--')}").is_dir()


def mistyped(kind: Literal["models", "datasets"], name: str) -> str | None:
    """A remedy with the path that was probably meant instead of a hub id; None if the hub should be asked."""
    near = similar_path(name)
    if near is None or in_hub_cache(kind, name):
        return None
    what = "" if kind == "models" else " --repo-type dataset"
    return f"Did you mean {near}? If you mean the hub's, fetch it first: hf download {name}{what}"
