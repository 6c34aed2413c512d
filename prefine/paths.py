"""Paths as people type them, in recipes and on the command line."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str) -> str:
    """A path with `~` and `~user` at its beginning replaced by that home folder; anything else as it is.

    A shell does this only for a word of its own, so not for `--set run=~/x`, nor for what stands in a recipe.
    """
    return os.path.expanduser(path)  # noqa: PTH111 - pathlib's raises over unknown users, and rewrites the rest


def is_there(path: Path) -> bool:
    """Whether a path is there and this user may read it; False inside private folders, where `Path.exists` raises."""
    try:
        return path.exists() and os.access(path, os.R_OK)
    except OSError:
        return False


def path_in_recipe(path: str) -> str:
    """Check and expand a recipe's field that may name a path. Raises ValueError, whose text is the rule."""
    if "\0" in path:
        raise ValueError("a name cannot hold NUL; write another name")
    return expanded(path)


def new_folder(path: str) -> str:
    """As `path_in_recipe`, for a folder that is made if it is not there. Raises ValueError."""
    if not path.strip():
        raise ValueError("names no folder; write for example runs/NAME")
    folder = path_in_recipe(path)
    if folder.startswith("~"):
        raise ValueError("begins with ~, but there is no such user; write ./~… if that is the folder's name")
    return folder
