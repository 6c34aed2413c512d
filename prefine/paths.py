"""Paths in recipes and on the command line."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str) -> str:
    """A path with `~` or `~user` at its start replaced by that home folder; other paths unchanged.

    A shell does this only for a separate word, so not for `--set run=~/x`, nor in a recipe.
    """
    return os.path.expanduser(path)  # noqa: PTH111 - pathlib's raises over unknown users, and rewrites the rest


def named(path: Path) -> Path:
    """A path that ends in the name of its file or folder: `.` and `..` are resolved, others are unchanged."""
    return path.resolve() if path.name in ("", "..") else path


def model_name(name: str) -> str:
    """A model's name as it is compared with others: `./runs/dpo/` is `runs/dpo`. URLs and other names are unchanged.

    It is for names only: what it names is looked for as it was typed, as `..` after a link leads elsewhere.
    """
    return name if not name or "://" in name else os.path.normpath(name)


def is_there(path: Path) -> bool:
    """Whether a path exists and is readable; False inside private folders, where `Path.exists` raises."""
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
    """As `path_in_recipe`, for a folder that is created if missing. Raises ValueError."""
    if not path.strip():
        raise ValueError("names no folder; write for example runs/NAME")
    folder = path_in_recipe(path)
    if folder.startswith("~"):
        raise ValueError("begins with ~, but there is no such user; write ./~… if that is the folder's name")
    return folder
