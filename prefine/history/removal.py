"""Removing runs, evaluations, exports and pipelines: not one that is going, and not one that runs, or stages of its
pipeline, were made from.

Evaluations and exports outside a pipeline are not looked for: they are whole without the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefine.errors import CheckpointError
from prefine.history.results import PIPELINE, RESULT, RUN, SET_ASIDE, kind_of
from prefine.paths import expanded, named
from prefine.pipeline.records import PipelineLock, PipelineRecords
from prefine.run import find_runs
from prefine.runs.atomic import discard
from prefine.runs.cache import bytes_below
from prefine.runs.directory import RunDirectory
from prefine.runs.holding import held
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

    """
    place = run.resolve()
    gone = [each.resolve() for each in (run, *leaving)]
    found: dict[Path, Dependent] = {}
    for folder in (place.parent, place.parent.parent, _USUAL):
        for other in find_runs(folder)[0] if folder.is_dir() else []:
            where = other.path.resolve()
            bases = (Path.cwd(), *where.parents)
            fields = [field for field, name in _names_in(other.recipe) if _is_in(name, place, bases)]
            if fields and not _is_below(where, gone):
                found.setdefault(where, Dependent(other.path, fields[0]))
    for each in _stages_after(place):
        if not _is_below(where := each.path.resolve(), gone):
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


def _is_below(place: Path, folders: Sequence[Path]) -> bool:
    return any(place.is_relative_to(each) for each in folders)


def remove_results(named_places: Sequence[Path], *, force: bool = False) -> list[tuple[Path, int]]:
    """Delete folders of runs, results and pipelines, after all were checked; returns each with the bytes that it had.

    Args:
        force: although others were made from them.

    Raises:
        CheckpointError: one is going, others were made from it, or it cannot be deleted.
    """
    every = {each.resolve(): named(each) for each in named_places}
    # What lies in another one that is named goes with it.
    places = [
        each for where, each in every.items() if not _is_below(where, [other for other in every if other != where])
    ]
    kinds = {place: kind_of(place) for place in places}
    for place, kind in kinds.items():
        others = dependents_of(place, named_places)
        if others and not force:
            first = others[0]
            more = f", and {len(others) - 1} more" if len(others) > 1 else ""
            raise CheckpointError(
                f"{place} is {first.field} of {first.path}{more}: without it that cannot be repeated or resumed",
                "Remove those first, name them too, or add --force.",
            )
        if kind == RUN and not is_ours(place):
            raise CheckpointError(f"{place} was not made by prefine", "Delete it yourself.")
    with ExitStack() as locks:
        for pipeline in dict.fromkeys(each for item in kinds.items() for each in _pipeline_of(*item)):
            locks.enter_context(PipelineLock(PipelineRecords(pipeline)))
        for place, kind in kinds.items():
            for lock in _locks(place, kind):
                locks.enter_context(lock)  # refuses while another process writes it
        removed = [(place, bytes_below(place)) for place in places]
        for place in places:
            discard(place)
    return removed


def _locks(place: Path, kind: str) -> Iterator[AbstractContextManager[object]]:
    if kind == RUN:
        yield RunDirectory.create(place, resume=True)
    elif kind == PIPELINE:
        for each in place.iterdir():
            yield held(each)
    elif kind == RESULT:
        yield held(place)


def _pipeline_of(place: Path, kind: str) -> Iterator[Path]:
    """The folder of the pipeline that must not run meanwhile; an export has no lock of its own."""
    folder = {SET_ASIDE: place.parent.parent, PIPELINE: place, RESULT: place.parent}.get(kind)
    if folder is not None and PipelineRecords(folder).own.is_dir():
        yield folder.resolve()


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
