"""What `prefine annotate export` writes, by format; each function returns the lines to show."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from prefine.annotation.project import ProjectReader

_BESIDE_A_PROJECT = ("-wal", "-shm", "-journal", ".sessions")


def export_rows(project: Path, wanted: Literal["preferences", "votes"], out: Path | None) -> list[str]:
    """Rows to train on, with where they are from."""
    from prefine.annotation.training_rows import annotation_rows
    from prefine.formatting import plural

    left_out: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        for row in annotation_rows(project, wanted):
            if row.value is not None:
                yield row.value
            elif row.unused is not None:
                left_out[f"{row.unused.field} {row.unused.reason}"] += 1

    count = _write(rows(), out)
    return [plural(count, wanted.removesuffix("s")), *_reasons(left_out)]


def export_arena(project: ProjectReader, out: Path | None) -> list[str]:
    """Votes as arena JSONL."""
    from prefine.annotation.exporting import arena_votes
    from prefine.formatting import plural

    left_out: Counter[str] = Counter()
    count = _write((vote.model_dump() for vote in arena_votes(project, left_out)), out)
    return [plural(count, "vote"), *_reasons(left_out)]


def export_csv(project: ProjectReader, out: Path | None) -> list[str]:
    """Every vote as a line of a spreadsheet.

    Raises:
        RecipeError: no file is named, or it exists and is not empty.
    """
    from prefine.annotation.exporting import write_csv
    from prefine.formatting import plural
    from prefine.runs.row_file import refuse_existing

    path = _named(out, "FILE")
    refuse_existing(path)
    return [f"{plural(write_csv(project, path), 'vote')} in {out}"]


def export_evals(project: Path, to: str, out: Path | None) -> list[str]:
    """Preferences as an evaluation of another program.

    Raises:
        RecipeError: no folder is named.
    """
    from prefine.annotation.exporting import battles
    from prefine.exchange.openai_evals import write_registry
    from prefine.exchange.promptfoo import write_config
    from prefine.formatting import plural

    folder = _named(out, "FOLDER")
    suite = battles(project)
    if to == "openai-evals":
        commands = [f"oaieval MODEL {each} --registry_path {out}" for each in write_registry(suite, folder, "people")]
    else:
        files = write_config(suite, folder, "people", model="prefine", url=None)
        commands = [f"promptfoo eval -c {each} -o results.json" for each in files]
    done = f"{plural(len(suite.battles), 'battle')} in {out}; run:"
    return [*_reasons(suite.left_out), done, *(f"  {command}" for command in commands)]


def refuse_project(project: Path, out: Path | None) -> None:
    """Refuse to write to the project itself, or to a file that belongs to it.

    Raises:
        RecipeError: `out` is one of them.
    """
    from prefine.errors import RecipeError

    if out is None:
        return
    own = [project.resolve().with_name(f"{project.resolve().name}{end}") for end in ("", *_BESIDE_A_PROJECT)]
    same_file = out.exists() and out.samefile(project)
    if same_file or out.resolve() in own:
        raise RecipeError(
            f"{out} is the project, or belongs to it, and would be lost", "Name another place.", field="--out"
        )


def _write(rows: Iterator[Mapping[str, Any]], out: Path | None) -> int:
    """JSON lines to a file, or to standard output."""
    from prefine.runs.atomic import require_writable
    from prefine.runs.row_file import RowFile
    from prefine.terminal import visible_json

    if out is None:
        count = 0
        for row in rows:
            count += 1
            sys.stdout.write(visible_json(json.dumps(row, ensure_ascii=False)) + "\n")
        return count
    require_writable(out)
    with RowFile(out, resume=False) as file:
        for row in rows:
            file.append(row)
        file.finish()
        return file.rows


def _named(out: Path | None, what: str) -> Path:
    from prefine.errors import RecipeError

    if out is None:
        raise RecipeError("this format is not printed", f"Name a place: --out {what}.", field="--out")
    return out


def _reasons(left_out: Counter[str]) -> Iterator[str]:
    from prefine.formatting import plural

    for reason, count in left_out.most_common():
        yield f"{plural(count, 'event')} without a row: {reason}"
