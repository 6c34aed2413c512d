"""Removing runs: not one that is going, and not one that other runs or pipelines were made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefine.errors import CheckpointError
from prefine.paths import expanded
from prefine.run import Run, find_runs
from prefine.runs.atomic import discard
from prefine.runs.directory import RunDirectory
from prefine.runs.ownership import is_ours

_USUAL = Path("runs")


@dataclass(frozen=True)
class Dependent:
    """A run that was made from another one: where it is, and the field of its recipe that names the other."""

    path: Path
    field: str


def dependents_of(run: Path, leaving: Sequence[Path] = ()) -> list[Dependent]:
    """The runs near a run, and in ./runs, whose recipes name it.

    Args:
        leaving: runs that are removed together with it.

    Raises:
        CheckpointError: the folder holds no run.
    """
    Run(run)
    place = run.resolve()
    gone = {each.resolve() for each in (run, *leaving)}
    found: dict[Path, Dependent] = {}
    for folder in (run.absolute().parent, run.absolute().parent.parent, _USUAL):
        for other in find_runs(folder)[0] if folder.is_dir() else []:
            where = other.path.resolve()
            fields = [field for field, name in _names_in(other.recipe) if _is_in(name, place)]
            if where not in gone and fields:
                found.setdefault(where, Dependent(other.path, fields[0]))
    return list(found.values())


def remove_run(run: Path, *, force: bool = False, leaving: Sequence[Path] = ()) -> int:
    """Delete a run's folder; returns the bytes that it had.

    Args:
        force: although others were made from it.
        leaving: see `dependents_of`.

    Raises:
        CheckpointError: it is going, others were made from it, or it cannot be deleted.
    """
    others = dependents_of(run, leaving)
    if others and not force:
        first = others[0]
        more = f", and {len(others) - 1} more" if len(others) > 1 else ""
        raise CheckpointError(
            f"{run} is {first.field} of {first.path}{more}: without it that cannot be repeated or resumed",
            "Remove those first, name them too, or add --force.",
        )
    if not is_ours(run):
        raise CheckpointError(f"{run} was not made by prefine", "Delete it yourself.")
    with RunDirectory.create(run, resume=True):  # refuses while another process writes it
        size = sum(file.stat().st_size for file in run.rglob("*") if file.is_file() and not file.is_symlink())
        discard(run)
    return size


def _names_in(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if name == "run" and not prefix:
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping):
                yield from _names_in(item, f"{prefix}{name}.")
            elif isinstance(item, str):
                yield prefix + name, item


def _is_in(name: str, place: Path) -> bool:
    """Whether a recipe's value is a path to a run or into it."""
    if not name or "\0" in name or len(name) > 4096:
        return False
    try:
        return Path(expanded(name)).resolve().is_relative_to(place)
    except (OSError, RuntimeError):
        return False
