"""The earlier result of a stage that is made anew: it is set aside, and deleted only once the new one is done.

.pipeline/old/NAME.json  its record, written before its folder is moved
.pipeline/old/NAME/      its folder

Every step is one rename or one written file. The stage's own record says "done" with the earlier inputs until the new
attempt begins, and again before the earlier folder is moved back; so a kill between two steps leaves a stage whose
files are missing, never one whose record is about other files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefine.errors import CheckpointError
from prefine.pipeline.records import PipelineRecords, StageRecord
from prefine.recipe.pipeline_stage import PipelineStage
from prefine.runs.atomic import discard, storage_errors
from prefine.runs.holding import held
from prefine.runs.ownership import LOCK_NAME, is_ours, is_own_page

_EXPORT = "export.json"
_PAGE = "report.html"
_EVALUATION_MARK = b"prefine evaluation"


def make_room(stage: PipelineStage, record: StageRecord | None, records: PipelineRecords) -> None:
    """Empty a stage's place, so that it begins anew: a result is set aside, and half of one deleted.

    Args:
        record: what was known of the stage.

    Raises:
        CheckpointError: its folder holds files of somebody else's, or another process writes it.
    """
    with storage_errors(stage.folder), _own(stage.folder, record) as is_there:
        if not is_there:
            return
        if record is None or record.status != "done":
            discard(stage.folder)
            return
        place = records.old_folder(stage.name)
        drop_earlier(stage, records)
        records.write_old(stage.name, record)
        stage.folder.rename(place)


def put_back(stage: PipelineStage, record: StageRecord, records: PipelineRecords) -> None:
    """Make the earlier result that was set aside the stage's result again.

    Args:
        record: of the earlier result.

    Raises:
        CheckpointError: see `make_room`.
    """
    with storage_errors(stage.folder):
        with _own(stage.folder, record) as is_there:
            if is_there:
                discard(stage.folder)
        records.write(stage.name, record)
        records.old_folder(stage.name).rename(stage.folder)
        drop_earlier(stage, records)


def drop_earlier(stage: PipelineStage, records: PipelineRecords) -> None:
    """Delete the result that was set aside, if there is one. Raises CheckpointError."""
    if records.old_folder(stage.name).exists():
        discard(records.old_folder(stage.name))
    records.forget_old(stage.name)


@contextmanager
def _own(folder: Path, record: StageRecord | None) -> Iterator[bool]:
    """Whether there is something in a stage's folder, which is the pipeline's and locked while the context lasts."""
    if not folder.exists():
        yield False
    elif folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        yield False
    elif record is None or not _is_of_a_stage(folder):
        raise CheckpointError(
            f"{folder} is there already, and this pipeline did not make it",
            "Move it away, or set another folder (--set folder=NEW).",
        )
    else:
        with held(folder):
            yield True


def _is_of_a_stage(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    if is_ours(folder):
        return True
    lock = folder / LOCK_NAME
    if lock.is_file() and lock.read_bytes().startswith(_EVALUATION_MARK):
        return True
    shown = [each for each in folder.iterdir() if not each.name.startswith(".")]
    return all((each / _EXPORT).is_file() or (each.name == _PAGE and is_own_page(each)) for each in shown)
