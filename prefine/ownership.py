"""Whose folder is it? A run writes, replaces and deletes only in an empty folder or in one that prefine has marked."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from prefine.atomic import is_temporary
from prefine.errors import CheckpointError
from prefine.json_reading import JsonError, read_json_object

LOCK_NAME = ".lock"
RECIPE_NAME = "recipe.yaml"
DATA_NAME = "data"
MARK = b"prefine run"
"""What a run's lock file begins with."""
RECIPE_MARK = "# The complete recipe of this run, written by prefine.\n"
"""What a run's recipe.yaml begins with."""
PREPARED_FILES = ("train.arrow", "heldout.arrow", "prepared.json")
"""What a run's data/ holds (see prefine.data.prepare)."""

_NAMES_SHOWN = 3
_HEAD_BYTES = 1 << 14
# What pages begin with, and what a readiness report's JSON says.
_SIGNS = (b"prefine", b'"verdict"')


def is_ours(folder: Path) -> bool:
    """Whether a folder is a run: its lock file is marked, or its manifest is prefine's (copies lack hidden files)."""
    with suppress(OSError), (folder / LOCK_NAME).open("rb") as file:
        if file.read(len(MARK)) == MARK:
            return True
    try:
        return {"prefine", "stage", "recipe"} <= read_json_object(folder / "manifest.json").keys()
    except (OSError, JsonError):
        return False


def refuse_foreign(folder: Path, resume: bool) -> None:
    """Raise CheckpointError for a folder without a mark, unless a new run can begin there: it is missing or empty."""
    if resume:
        raise CheckpointError(f"{folder} holds no run to resume", "Name the run's folder, or leave --resume out.")
    found = sorted(folder.iterdir()) if folder.exists() else []
    # A process killed right after it made its lock file leaves it empty.
    found = [path for path in found if path.name != LOCK_NAME or not path.is_file() or path.stat().st_size]
    if found:
        names = [path.name for path in found[:_NAMES_SHOWN]] + ["…"] * (len(found) > _NAMES_SHOWN)
        raise CheckpointError(
            f"run: {folder} holds other files ({', '.join(names)}), and a run needs a folder of its own",
            "Set run to the name of a new folder, for example runs/NAME.",
        )


def refuse_additions(folder: Path) -> None:
    """Raise CheckpointError if somebody has put files where a start that came to nothing left only its own."""
    data, recipe = folder / DATA_NAME, folder / RECIPE_NAME
    added = [path for path in data.iterdir() if path.name not in PREPARED_FILES] if data.is_dir() else []
    if recipe.is_file() and not is_own_recipe(recipe):
        added.append(recipe)
    added = [path for path in added if not is_temporary(path)]
    if added:
        raise CheckpointError(
            f"run: {min(added)} was not written by prefine, and a run needs a folder of its own",
            "Move it away, or set run to the name of a new folder.",
        )


def is_own_recipe(path: Path) -> bool:
    """Whether a recipe.yaml was written by a run."""
    with path.open("rb") as file:
        return file.read(len(RECIPE_MARK)) == RECIPE_MARK.encode()


def refuse_foreign_file(path: Path) -> None:
    """Raise CheckpointError if a page or JSON file that prefine is to write is there already, but not from prefine.

    In a run's own folder every file of such a name is a run's, damaged ones included.
    """
    if is_ours(path.parent) or not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(_HEAD_BYTES)
    if not any(sign in start for sign in _SIGNS):
        raise CheckpointError(f"{path} was not written by prefine", "Move it away, or choose another folder.")
