"""Outputs of verbs: rows to a file or standard output, a report to a folder.

Each output is checked before any work.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefine.terminal import visible_json

if TYPE_CHECKING:
    from prefine.data.reading.quarantine import Quarantine
    from prefine.data.row_blocks import BlockRows
    from prefine.runs.row_file import RowFile

# Keys of a readiness.json.
_JUDGED = {"verdict", "findings", "accuracy"}
_MOST_READ = 16 * 1024 * 1024


@contextmanager
def row_output(
    out: Path | None, quarantine: Path | None, sources: Sequence[str], resume: bool
) -> Iterator[tuple[RowFile | None, Quarantine]]:
    """The outputs for a verb's rows (None: standard output) and for rows it cannot use; both are checked before any
    work.

    Raises:
        RecipeError: --out is the quarantine file or a source; the file exists and is not empty; a resume without a
            partial file, or a partial file without a resume.
        CheckpointError: one of them cannot be written.
        DataError: a source cannot be found.
    """
    from prefine.data.reading.quarantine import Quarantine
    from prefine.errors import RecipeError
    from prefine.runs.atomic import require_writable
    from prefine.runs.row_file import RowFile

    if out is not None and not out.name:
        raise RecipeError(f"--out is {str(out)!r}, which names no file", "Name a file.")
    if resume and out is None:
        raise RecipeError(
            "--resume needs the file to continue, and no --out is given", "Add --out FILE, as the first time."
        )
    require_quarantine(quarantine, sources, out)
    with Quarantine(quarantine) as refused:
        if out is None:
            yield None, refused
            return
        require_writable(out)
        with RowFile(out, resume) as file:
            yield file, refused


def require_quarantine(quarantine: Path | None, sources: Sequence[str], out: Path | None = None) -> None:
    """Check before any work that rows can be quarantined there and that no source is overwritten.

    Raises:
        RecipeError: the file holds something else; it is a source, or --out; or --out is a source.
        CheckpointError: it cannot be written.
        DataError: a source cannot be found.
    """
    from prefine.errors import RecipeError
    from prefine.runs.atomic import require_writable

    if out is not None and quarantine is not None and out.resolve() == quarantine.resolve():
        raise RecipeError(f"--out and --quarantine are both {out}", "Name two files.")
    require_apart([(name, path) for name, path in (("--out", out), ("--quarantine", quarantine)) if path], sources)
    if quarantine is not None:
        require_writable(quarantine, folder_is_made=True)
        _require_quarantine_file(quarantine)


def require_report_folder(folder: Path, sources: Sequence[str], run: Path | None) -> None:
    """Check before any work that `prefine reward check` can write its report to a folder, which may not exist yet.

    Args:
        folder: of the report.
        sources: files that are read.
        run: the reward run that is checked, if any: a report in its folder is its own, even if damaged.

    Raises:
        RecipeError: a file of the report's name was not made by prefine, or is a source.
        CheckpointError: the files cannot be written.
        DataError: a source cannot be found.
    """
    from prefine.errors import RecipeError
    from prefine.evaluation.readiness.page import JSON_NAME, PAGE_NAME
    from prefine.json_reading import JsonError, read_json_object
    from prefine.runs.atomic import require_writable
    from prefine.runs.ownership import is_own_page

    held, page = folder / JSON_NAME, folder / PAGE_NAME
    require_apart([("--out", held), ("--out", page)], sources)
    for path in (held, page):
        require_writable(path, folder_is_made=True)
    if run is not None and folder.resolve() == run.resolve():
        return
    try:
        own = held.exists() and read_json_object(held).keys() >= _JUDGED
    except JsonError:
        own = False
    for path, made in ((held, own), (page, is_own_page(page))):
        if path.exists() and not made:
            raise RecipeError(
                f"--out: {path} exists, and prefine reward check did not write it",
                "Name another folder, or move that file away.",
            )


def write_rows(
    rows: BlockRows[Any],
    blocks: Iterable[Iterable[Mapping[str, Any]]],
    out: RowFile | None,
    progress: Callable[[int], None],
) -> None:
    """Write one JSON line for each row as it arrives; `progress` gets their number.

    Raises:
        PrefineError: raised by reading or computing; if rows were finished, the remedy says where they are.
    """
    from prefine.errors import PrefineError
    from prefine.formatting import plural

    if out is None:
        for done, row in enumerate((row for block in blocks for row in block), start=1):
            sys.stdout.write(visible_json(json.dumps(row, ensure_ascii=False)) + "\n")
            progress(done)
        return
    try:
        for block in blocks:
            for row in block:
                out.append(row)
                progress(out.rows)
            out.end_block(rows.state())
        out.finish()
    except PrefineError as error:
        if not out.rows:
            raise
        kept = (
            f"{plural(out.rows, 'row')} done before it, in {out.partial}; continue with the same command and --resume"
        )
        error.remedy = f"{error.remedy} {kept}."
        raise


def require_apart(written: Sequence[tuple[str, Path]], sources: Sequence[str]) -> None:
    """Raise RecipeError if a source would be overwritten; `written` has options with their files."""
    from prefine.data.reading.source_names import source_names
    from prefine.data.reading.sources import locate
    from prefine.errors import RecipeError

    for part in (part for name in source_names(list(sources)) for part in locate(name)):
        for option, path in written:
            if part.path is not None and path.resolve() == part.path.resolve():
                raise RecipeError(
                    f"{option} is {path}, which is a source", "Name another file: this one would be overwritten."
                )


def _require_quarantine_file(path: Path) -> None:
    """Refuse a file of another kind: it would be overwritten."""
    from prefine.errors import RecipeError
    from prefine.json_reading import JsonError, parse_json
    from prefine.runs.ownership import QUARANTINE_KEYS

    if not path.exists():
        return
    with path.open("rb") as file:
        line = file.readline(_MOST_READ)
    try:
        row = parse_json(line) if line else None
    except JsonError:
        row = {}
    if row is None or (isinstance(row, dict) and row.keys() == set(QUARANTINE_KEYS)):
        return
    raise RecipeError(
        f"--quarantine: {path} already exists, and is not a file of refused rows from prefine",
        "Name another file, or move that one away.",
    )
