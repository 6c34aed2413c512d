"""Where verbs that answer rows with rows write them: into a file, whole or not at all, or to standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def require_apart(out: Path | None, quarantine: Path | None, sources: Sequence[str]) -> None:
    """Refuse to write over what is read, or two things into one file.

    Raises:
        RecipeError: --out is the quarantine file or a source.
        DataError: a source cannot be found.
    """
    from prefine.data.prepare import source_names
    from prefine.data.reading import locate
    from prefine.errors import RecipeError

    if out is None:
        return
    written = out.resolve()
    if quarantine is not None and written == quarantine.resolve():
        raise RecipeError(f"--out and --quarantine are both {out}", "Name two files.")
    for part in (part for name in source_names(list(sources)) for part in locate(name)):
        if part.path is not None and written == part.path.resolve():
            raise RecipeError(f"--out is {out}, which is what is read", "Name another file: nothing of it would stay.")


def write_rows(rows: Iterable[Mapping[str, Any]], out: Path | None, progress: Callable[[int], None]) -> None:
    """One JSON line a row, as it comes; `progress` is told how many."""
    from prefine.atomic import atomic_write

    if out is None:
        for done, row in enumerate(rows, start=1):
            sys.stdout.write(_line(row))
            progress(done)
        return
    with atomic_write(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for done, row in enumerate(rows, start=1):
            file.write(_line(row))
            progress(done)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
