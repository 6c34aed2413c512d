"""Names of folders and files that were mistyped."""

from __future__ import annotations

import os
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Literal

# In a folder of more entries than these nothing is looked for.
_MOST_ENTRIES = 10_000
# "dop" is as near to "dpo": two letters of three, in order.
_CLOSE = 0.65


def similar_path(name: str) -> str | None:
    """What is there and nearly has this name, every part of it; None where the name is there, or nothing is like it."""
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
    except (OSError, ValueError):  # no permission; a name that no folder can have
        return None
    return None if found == path or not name else str(found)


def in_hub_cache(kind: Literal["models", "datasets"], name: str) -> bool:
    """Whether something of this hub id has been fetched before."""
    from huggingface_hub import constants

    return (Path(constants.HF_HUB_CACHE) / f"{kind}--{name.replace('/', '--')}").is_dir()


def mistyped(kind: Literal["models", "datasets"], name: str) -> str | None:
    """A remedy that names what was probably meant instead of a hub id; None where the hub is to be asked."""
    near = similar_path(name)
    if near is None or in_hub_cache(kind, name):
        return None
    what = "" if kind == "models" else " --repo-type dataset"
    return f"Did you mean {near}? If you mean the hub's, fetch it first: hf download {name}{what}"
