"""Removing runs: not one that is going, and not one that other runs, or other stages of its pipeline, were made from.

Evaluations and exports outside a pipeline are not looked for: they are whole without the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefine.errors import CheckpointError
from prefine.paths import expanded, named
from prefine.pipeline.records import PipelineRecords
from prefine.run import Run, find_runs
from prefine.runs.atomic import discard
from prefine.runs.directory import RunDirectory
from prefine.runs.ownership import is_ours

_USUAL = Path("runs")


@dataclass(frozen=True)
class Dependent:
    """A run or a stage that was made from a run: where it is, and what in it names the run."""

    path: Path
    field: str


def dependents_of(run: Path, leaving: Sequence[Path] = ()) -> list[Dependent]:
    """What was made from a run: runs near it and in ./runs whose recipes name it, and the stages of its pipeline.

    A relative name in a recipe is from the working directory of that time, which is not known: it counts from the
    current one, and from each folder that the naming run is in.

    Args:
        leaving: runs that are removed together with it.

    Raises:
        CheckpointError: the folder holds no run.
    """
    Run(run)
    place = run.resolve()
    gone = {each.resolve() for each in (run, *leaving)}
    found: dict[Path, Dependent] = {}
    for folder in (place.parent, place.parent.parent, _USUAL):
        for other in find_runs(folder)[0] if folder.is_dir() else []:
            where = other.path.resolve()
            bases = (Path.cwd(), *where.parents)
            fields = [field for field, name in _names_in(other.recipe) if _is_in(name, place, bases)]
            if where not in gone and fields:
                found.setdefault(where, Dependent(other.path, fields[0]))
    for each in _stages_after(place):
        if (where := each.path.resolve()) not in gone:
            found.setdefault(where, each)
    return list(found.values())


def _stages_after(place: Path) -> Iterator[Dependent]:
    """The stages of a run's pipeline that were made from it. A page that compares runs is none."""
    records = PipelineRecords(place.parent)
    for stage in records.known():
        record = records.read(stage)
        if record is None or record.inputs.get("method") == "report" or not (place.parent / stage).exists():
            continue
        if f"stage {place.name}" in record.inputs:
            yield Dependent(place.parent / stage, f"stage:{place.name}")


def remove_runs(runs: Sequence[Path], *, force: bool = False) -> list[tuple[Path, int]]:
    """Delete runs' folders, after all of them were checked; returns each with the bytes that it had.

    Args:
        force: although others were made from them.

    Raises:
        CheckpointError: one is going, others were made from it, or it cannot be deleted.
    """
    places = list({each.resolve(): named(each) for each in runs}.values())
    for run in places:
        others = dependents_of(run, runs)
        if others and not force:
            first = others[0]
            more = f", and {len(others) - 1} more" if len(others) > 1 else ""
            raise CheckpointError(
                f"{run} is {first.field} of {first.path}{more}: without it that cannot be repeated or resumed",
                "Remove those first, name them too, or add --force.",
            )
        if not is_ours(run):
            raise CheckpointError(f"{run} was not made by prefine", "Delete it yourself.")
    removed = []
    with ExitStack() as locks:
        for run in places:
            locks.enter_context(RunDirectory.create(run, resume=True))  # refuses while another process writes it
        for run in places:
            files = [file for file in run.rglob("*") if file.is_file() and not file.is_symlink()]
            removed.append((run, sum(file.stat().st_size for file in files)))
        for run in places:
            if run.exists():  # it may have been in one of the others
                discard(run)
    return removed


def _names_in(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if name == "run" and not prefix:
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping):
                yield from _names_in(item, f"{prefix}{name}.")
            elif isinstance(item, str):
                yield prefix + name, item


def _is_in(name: str, place: Path, bases: Sequence[Path]) -> bool:
    """Whether a recipe's value is a path to a run or into it, from one of some folders."""
    if not name or "\0" in name or len(name) > 4096:
        return False
    try:
        return any((base / expanded(name)).resolve().is_relative_to(place) for base in bases)
    except (OSError, RuntimeError):
        return False
