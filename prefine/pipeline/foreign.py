"""What lies in the folder of an evaluation or of exports and is not prefine's: it is never deleted with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prefine.json_reading import JsonError, read_json_object
from prefine.runs.atomic import is_temporary
from prefine.runs.ownership import LOCK_NAME, is_ours, is_own_page

_EXPORT, _README, _PAGE = "export.json", "README.md", "report.html"
_EVALUATION_MARK = b"prefine evaluation"
_OF_AN_EVALUATION = (
    *(LOCK_NAME, "question.json", "answers.jsonl", "regression.jsonl", "report.json", "report.html", "parts"),
    *(f"{name}{suffix}" for name in ("replies.db", "judge.db") for suffix in ("", "-wal", "-shm", "-journal")),
)


def is_evaluation(folder: Path) -> bool:
    """Whether a folder has the mark of an evaluation."""
    lock = folder / LOCK_NAME
    return lock.is_file() and lock.read_bytes().startswith(_EVALUATION_MARK)


def is_export(folder: Path) -> bool:
    """Whether a folder is an export."""
    return (folder / _EXPORT).is_file()


def is_page(path: Path) -> bool:
    """Whether a file is a page that prefine wrote."""
    return path.name == _PAGE and path.is_file() and is_own_page(path)


def foreign_in(folder: Path) -> list[str]:
    """Names of what is not prefine's in a folder of an evaluation, of exports or of a page, sorted. Not of a run.

    Raises:
        OSError: the folder cannot be read.
    """
    return [] if is_ours(folder) else sorted(_foreign(folder))


def _foreign(folder: Path) -> Iterator[str]:
    evaluation = is_evaluation(folder)
    for each in folder.iterdir():
        if is_temporary(each) or (evaluation and each.name in _OF_AN_EVALUATION):
            continue
        if not evaluation and each.is_dir() and is_export(each):
            yield from (f"{each.name}/{name}" for name in _foreign_in_export(each))
        elif evaluation or not is_page(each):
            yield each.name


def _foreign_in_export(folder: Path) -> Iterator[str]:
    """Files that an export's own list does not name."""
    try:
        listed = read_json_object(folder / _EXPORT).get("files")
    except (OSError, JsonError):
        listed = None
    known = {_EXPORT, _README, *(listed if isinstance(listed, dict) else ())}
    for file in folder.rglob("*"):
        name = file.relative_to(folder).as_posix()
        if (file.is_symlink() or not file.is_dir()) and name not in known and not is_temporary(file):
            yield name
