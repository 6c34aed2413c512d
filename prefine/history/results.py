"""What takes disk space besides runs: evaluations, exports, whole pipelines, and what these have set aside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prefine.errors import CheckpointError
from prefine.formatting import listing
from prefine.pipeline.earlier import is_of_a_stage
from prefine.pipeline.foreign import foreign_in, is_page
from prefine.pipeline.records import PipelineRecords
from prefine.recipe.registry import RECIPES
from prefine.run import Run
from prefine.runs.atomic import is_temporary
from prefine.runs.cache import bytes_below
from prefine.runs.ownership import is_ours
from prefine.runs.tags import tags_of

_OWN, _OLD = ".pipeline", "old"
# The second one is that of make quickstart.
_MARKS = (_OWN, ".quickstart")
RUN, RESULT, PIPELINE, SET_ASIDE = "run", "result", "whole pipeline", "set-aside results of"


@dataclass(frozen=True)
class OtherResult:
    """Something of prefine's that is no run.

    Attributes:
        kind: evaluate, export, report or pipeline.
        status: of a stage: done, running (also: interrupted) or failed; of a pipeline its name.
        size_bytes: of all its files.
        set_aside: of a pipeline: the folder of earlier results and attempts, if it holds any.
        set_aside_bytes: likewise.
    """

    path: Path
    kind: str
    status: str
    size_bytes: int
    set_aside: Path | None = None
    set_aside_bytes: int = 0


def other_results(folder: Path) -> list[OtherResult]:
    """The pipelines at a folder, in it and in its subfolders, each after its stages that are no runs."""
    files = (*folder.glob(f"{_OWN}/stages"), *folder.glob(f"*/{_OWN}/stages"), *folder.glob(f"*/*/{_OWN}/stages"))
    return [each for stages in sorted(files) for each in _of_pipeline(stages.parent.parent)]


def _of_pipeline(folder: Path) -> Iterator[OtherResult]:
    records = PipelineRecords(folder)
    for name in records.known():
        record, place = records.read(name), folder / name
        method = None if record is None else record.inputs.get("method")
        if record is not None and isinstance(method, str) and method not in RECIPES and place.is_dir():
            yield OtherResult(place, method, record.status, bytes_below(place))
    size, aside = bytes_below(folder), bytes_below(records.old)
    yield OtherResult(folder, "pipeline", records.name or "", size, records.old if aside else None, aside)


def kind_of(place: Path) -> str:
    """What a folder that is to be removed is: RUN, RESULT (of an evaluation, export or report), PIPELINE or SET_ASIDE.

    Raises:
        CheckpointError: it is none of these, or holds files of somebody else's as well.
    """
    if place.name == _OLD and place.parent.name == _OWN and place.is_dir():
        for each in sorted(each for each in place.iterdir() if each.is_dir()):
            if tags := tags_of(each):
                raise CheckpointError(f"{each} is tagged {' '.join(tags)}", "Move it away, or remove its tag.")
            _require_nothing_foreign(each)
        return SET_ASIDE
    if (place / _OWN / "stages").is_dir():
        _require_only_own(place)
        return PIPELINE
    shown = [each for each in place.iterdir() if not each.name.startswith(".")] if place.is_dir() else []
    if shown and not is_ours(place) and is_of_a_stage(place):
        _require_nothing_foreign(place)
        return RESULT
    Run(place)
    return RUN


def _require_only_own(pipeline: Path) -> None:
    """Raise CheckpointError if a pipeline's folder holds something that is not of its stages."""
    known = PipelineRecords(pipeline).known()
    for each in pipeline.iterdir():
        if each.is_dir() and each.name.partition(".")[0] in known and is_of_a_stage(each):
            _require_nothing_foreign(each)
        elif not (each.name in _MARKS or is_temporary(each) or is_page(each)):
            raise CheckpointError(f"{pipeline} also holds {each.name}, which is not of its pipeline", "Move it away.")


def _require_nothing_foreign(place: Path) -> None:
    """Raise CheckpointError if a folder of an evaluation or of exports holds files of somebody else's."""
    if foreign := foreign_in(place):
        raise CheckpointError(f"{place} also holds {listing(foreign)}, which prefine did not write", "Move it away.")
