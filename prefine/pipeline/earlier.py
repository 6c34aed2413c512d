"""What a stage left before it is made anew: results, and attempts that were interrupted or failed, are set aside.

.pipeline/old/NAME.1.json  its record, written before its folder is moved
.pipeline/old/NAME.1/      its folder

It becomes the stage's again if the inputs are set back. Once a new result is done, it is deleted; if it has a tag, or
holds files that are not prefine's, it is kept as NAME.kept-1 beside the stage's folder. No stage can have that name, as
names of stages hold no dot. Replies that an evaluation paid for and verdicts of people are copied to the stage's folder
before they are used or deleted.

Every step is one rename or one written file. The stage's own record is about the earlier inputs until the new attempt
begins, and again before the earlier folder is moved back; so a kill between two steps leaves a stage whose files are
missing, never one whose record is about other files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from prefine.errors import CheckpointError
from prefine.pipeline.evaluating import EVALUATE
from prefine.pipeline.foreign import foreign_in, is_evaluation, is_export, is_page
from prefine.pipeline.records import PipelineRecords, StageAside, StageRecord
from prefine.recipe.pipeline_stage import PipelineStage
from prefine.runs.atomic import discard, storage_errors
from prefine.runs.holding import held
from prefine.runs.ownership import is_ours
from prefine.runs.tags import tags_of


@dataclass(frozen=True)
class Kept:
    """An earlier result that is not deleted, for its tags or for files that are not prefine's: where it is now."""

    folder: Path
    tags: tuple[str, ...]
    foreign: tuple[str, ...]


def make_room(stage: PipelineStage, record: StageRecord | None, records: PipelineRecords) -> Path | None:
    """Empty a stage's place, so that it begins anew; returns where what was there is set aside, if there was anything.

    Args:
        record: what was known of the stage.

    Raises:
        CheckpointError: its folder holds files of somebody else's, or another process writes it.
    """
    with storage_errors(stage.folder), _own(stage.folder, record) as is_there:
        if not is_there or record is None:
            return None
        place = records.free_place(stage.name)
        records.write_earlier(StageAside(place, record))
        stage.folder.rename(place)
        return place


def put_back(stage: PipelineStage, aside: StageAside, records: PipelineRecords) -> Path | None:
    """Make what was set aside the stage's again; returns where what is there now is set aside, if there is anything.

    Raises:
        CheckpointError: see `make_room`.
    """
    place = make_room(stage, records.read(stage.name), records)
    with storage_errors(stage.folder):
        records.write(stage.name, aside.record)
        aside.folder.rename(stage.folder)
        records.forget_earlier(aside.folder)
    return place


def drop_earlier(stage: PipelineStage, records: PipelineRecords, *, attempts: bool) -> list[Kept]:
    """Delete what was set aside of a stage that is done; returns what is kept, see `Kept`.

    Args:
        attempts: also attempts that did not end. Results are always deleted.

    Raises:
        PrefineError: the disk cannot be written, or paid replies are damaged.
    """
    dropped = [each for each in records.earlier(stage.name) if attempts or each.is_result]
    record = records.read(stage.name)
    take_over(stage, records, compared=record is None or not record.forced)
    kept = []
    for aside in dropped:
        with storage_errors(aside.folder):
            tags, foreign = tuple(tags_of(aside.folder)), tuple(foreign_in(aside.folder))
        if tags or foreign:
            place = _free_name(stage)
            with storage_errors(place):
                aside.folder.rename(place)
            kept.append(Kept(place, tags, foreign))
        else:
            discard(aside.folder)
        records.forget_earlier(aside.folder)
    return kept


def take_over(stage: PipelineStage, records: PipelineRecords, *, compared: bool) -> None:
    """Copy paid replies and people's verdicts from what was set aside of an evaluation to its folder.

    Of several for the same request or judge, the newest are taken. Replies of compared endpoints that are older than
    a forced attempt are left out: they are of an earlier model.

    Args:
        compared: also the replies of compared endpoints, besides those of judges.

    Raises:
        PrefineError: the disk cannot be written, or replies are damaged.
    """
    if stage.method != EVALUATE:
        return
    from prefine.evaluation.comparing.carrying import carry_over

    for aside in reversed(records.earlier(stage.name)):  # what is there already stays
        carry_over(aside.folder, stage.folder, compared=compared)
        compared = compared and not aside.record.forced


def _free_name(stage: PipelineStage) -> Path:
    names = (stage.folder.with_name(f"{stage.name}.kept-{number}") for number in count(1))
    return next(place for place in names if not place.exists())


@contextmanager
def _own(folder: Path, record: StageRecord | None) -> Iterator[bool]:
    """Whether there is something in a stage's folder, which is the pipeline's and locked while the context lasts."""
    if not folder.exists():
        yield False
    elif folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        yield False
    elif record is None or not is_of_a_stage(folder):
        raise CheckpointError(
            f"{folder} is there already, and this pipeline did not make it",
            "Move it away, or set another folder (--set folder=NEW).",
        )
    else:
        with held(folder):
            yield True


def is_of_a_stage(folder: Path) -> bool:
    """Whether a folder is a run, an evaluation, or holds nothing but exports or a page of prefine's."""
    if not folder.is_dir():
        return False
    if is_ours(folder) or is_evaluation(folder):
        return True
    shown = [each for each in folder.iterdir() if not each.name.startswith(".")]
    return all(is_export(each) or is_page(each) for each in shown)
