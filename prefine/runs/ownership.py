"""Ownership of folders: a run writes, replaces and deletes only in an empty folder or one marked by prefine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from prefine.errors import CheckpointError
from prefine.json_reading import JsonError, parse_json, read_json, read_json_object
from prefine.runs.atomic import is_temporary

LOCK_NAME = ".lock"
RECIPE_NAME = "recipe.yaml"
DATA_NAME = "data"
MARK = b"prefine run"
"""First line of a run's lock file."""
RECIPE_MARK = "# The complete recipe of this run, written by prefine.\n"
"""First line of a run's recipe.yaml."""
PREPARED_FILES = ("train.arrow", "heldout.arrow", "prepared.json")
"""Files of a run's data/ (see prefine.data.prepare)."""

STORE_COLUMNS = ("prompt", "answers", "supervised", "record")
"""The columns of a token store (see prefine.data.tokens.store)."""
QUARANTINE_NAME = "quarantine.jsonl"
QUARANTINE_KEYS = ("file", "line", "field", "reason", "row")
"""Keys of each line of a quarantine file (see prefine.data.reading.quarantine)."""
TRACKERS_NAME = "prefine"
"""The project's name for trackers, and the folder in a run where they log."""

_NAMES_SHOWN = 3
_ARROW = b"ARROW1"
_HEAD_BYTES = 1 << 14
_PAGE_MARK = b'<meta name="generator" content="prefine">'


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
    """Raise CheckpointError for a folder without a mark, unless it is missing or empty, so that a new run can start
    there.
    """
    if resume:
        raise CheckpointError(f"{folder} holds no run to resume", "Name the run's folder, or leave --resume out.")
    found = sorted(folder.iterdir()) if folder.exists() else []
    # A process killed right after it created its lock file leaves it empty.
    found = [path for path in found if path.name != LOCK_NAME or not path.is_file() or path.stat().st_size]
    if found:
        raise CheckpointError(
            f"run: {folder} holds other files ({_listed(found)}), and a run needs a separate folder",
            "Set run to the name of a new folder, for example runs/NAME.",
        )


def _listed(paths: Sequence[Path]) -> str:
    """The first few names, as text."""
    return ", ".join([path.name for path in paths[:_NAMES_SHOWN]] + ["…"] * (len(paths) > _NAMES_SHOWN))


def refuse_additions(folder: Path) -> None:
    """Raise CheckpointError if a run's folder without a manifest holds files that are not written before the manifest.

    The mark of a refused or killed start stays, so a user's later files in that folder are kept.
    """
    data = folder / DATA_NAME
    found = list(folder.iterdir()) if folder.is_dir() else []
    if data.is_dir():
        found = [path for path in found if path != data] + list(data.iterdir())
    added = sorted(path for path in found if not (is_temporary(path) or _is_of_a_start(path)))
    if added:
        raise CheckpointError(
            f"run: {folder} holds no manifest.json, and {_listed(added)} in it may not be from prefine",
            "If this was a run, restore manifest.json from a copy; otherwise set run to the name of a new folder.",
        )


def _is_of_a_start(path: Path) -> bool:
    """Whether a start writes such a file, with such contents, before its manifest. An empty file may be from a killed
    one.

    Trackers log to a folder that prefine neither replaces nor deletes.
    """
    if path.is_dir():
        return path.name == TRACKERS_NAME
    if path.name == LOCK_NAME or not path.stat().st_size:
        return path.name in {LOCK_NAME, RECIPE_NAME, QUARANTINE_NAME, *PREPARED_FILES}
    if path.name == RECIPE_NAME:
        return is_own_recipe(path)
    if path.name == QUARANTINE_NAME:
        with path.open("rb") as file:
            return _has_keys(QUARANTINE_KEYS, lambda: parse_json(file.readline(_HEAD_BYTES)))
    if path.name not in PREPARED_FILES:
        return False
    if path.suffix == ".json":
        return _has_keys(("key", "digests"), lambda: read_json(path))
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return head.startswith(_ARROW) and all(column.encode() in head for column in STORE_COLUMNS)


def _has_keys(keys: Iterable[str], read: Callable[[], object]) -> bool:
    try:
        value = read()
    except JsonError:
        return False
    return isinstance(value, dict) and value.keys() >= set(keys)


def is_own_recipe(path: Path) -> bool:
    """Whether a recipe.yaml was written by a run."""
    with path.open("rb") as file:
        return file.read(len(RECIPE_MARK)) == RECIPE_MARK.encode()


def is_own_page(path: Path) -> bool:
    """Whether an HTML file exists and names prefine as its generator."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return _PAGE_MARK in file.read(_HEAD_BYTES)


def refuse_foreign_page(path: Path) -> None:
    """Raise CheckpointError if a page to be written already exists and is not from prefine.

    In a run's folder every file of such a name belongs to the run, even if damaged.
    """
    if is_ours(path.parent) or not path.is_file():
        return
    if not is_own_page(path):
        raise CheckpointError(f"{path} was not written by prefine", "Move it away, or choose another folder.")
