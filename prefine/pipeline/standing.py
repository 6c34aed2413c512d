"""Which stages are cached and which run, each with the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from prefine.errors import MissingDataError, PrefineError
from prefine.formatting import listing, plural
from prefine.pipeline.digests import KnownDigests, joined_digest
from prefine.pipeline.evaluating import EVALUATE, digest_of_result, same_answers
from prefine.pipeline.inputs import Inputs, changes, key_of, readiness_changes, stage_inputs
from prefine.pipeline.records import PipelineRecords, StageAside, StageRecord
from prefine.recipe.pipeline import Pipeline
from prefine.recipe.pipeline_methods import EvaluateRecipe
from prefine.recipe.pipeline_stage import PipelineStage

_MOST_CHANGES = 3


@dataclass(frozen=True)
class ChosenStages:
    """Which stages a command concerns.

    Attributes:
        names: in order; the others are used as they are.
        force: run these although they are cached.
    """

    names: tuple[str, ...]
    force: bool = False


@dataclass(frozen=True)
class StageStanding:
    """Where a stage stands.

    Attributes:
        stage: the stage.
        state: cached; to run, from its beginning; to resume: it goes on where it was; blocked: by a gate; left: not
            chosen.
        why: the reason, as a clause.
        inputs: its inputs, without those of parents that run first; {} if it is not chosen and they cannot be read.
        record: what was known before.
        gates: the evaluations whose gate blocks it.
        aside: what was set aside for an attempt with other inputs, and is to be put back first; None if there is none.
        keeps_result: it is to resume, but is finished: its readiness report is made again, and nothing else.
        keeps_answers: it is to run, in its folder: of an evaluation, what decides the answers is as it was.
    """

    stage: PipelineStage
    state: Literal["cached", "to run", "to resume", "blocked", "left"]
    why: str
    inputs: Inputs
    record: StageRecord | None
    gates: tuple[str, ...] = ()
    aside: StageAside | None = None
    keeps_result: bool = False
    keeps_answers: bool = False

    @property
    def runs(self) -> bool:
        """Whether it is to run."""
        return self.state in ("to run", "to resume")


def chosen(pipeline: Pipeline, start: str | None, only: str | None, force: bool) -> ChosenStages:
    """The stages of `--from`, `--only`, or all.

    Raises:
        RecipeError: there is no such stage.
    """
    if only is not None:
        return ChosenStages((pipeline.stage(only, "--only").name,), force)
    if start is not None:
        wanted = {pipeline.stage(start, "--from").name, *pipeline.descendants(start)}
        return ChosenStages(tuple(name for name in pipeline.stages if name in wanted), force)
    return ChosenStages(tuple(pipeline.stages), force)


def result_digest(record: StageRecord) -> str:
    """One hash of a finished stage, for the inputs of those that need it: what it began with, and what came of it."""
    return joined_digest({**record.results, "key": record.key, "gate": str(record.gate)})


def standings(
    pipeline: Pipeline, records: PipelineRecords, choice: ChosenStages, *, data_needed: bool = True
) -> list[StageStanding]:
    """Where each stage stands now, in order.

    Args:
        data_needed: False for stages to run whose data are not there yet.

    Raises:
        RecipeError: the folder belongs to another pipeline. DataError: a source does not exist.
    """
    records.require_belongs(pipeline)
    found: dict[str, StageStanding] = {}
    for stage in pipeline.stages.values():
        try:
            found[stage.name] = standing(stage, records, choice, found)
        except MissingDataError as error:
            if data_needed:
                raise
            why = f"its data are not there yet ({error.problem.removeprefix(f'stage {stage.name}: ')})"
            found[stage.name] = StageStanding(stage, "to run", why, {}, records.read(stage.name))
    return list(found.values())


def standing(
    stage: PipelineStage, records: PipelineRecords, choice: ChosenStages, parents: Mapping[str, StageStanding]
) -> StageStanding:
    """Where a stage stands, given where its parents stand."""
    record = records.read(stage.name)
    if stage.name not in choice.names:
        return StageStanding(stage, "left", *_left(stage, record, records.digests, parents), record)
    waiting = [name for name in stage.parents if parents[name].runs and not parents[name].keeps_result]
    done = [name for name in stage.parents if name not in waiting]
    inputs = stage_inputs(stage, _results(done, parents), records.digests)
    if closed := {name: why for name in done if (why := _why_closed(parents[name])) is not None}:
        return StageStanding(stage, "blocked", "; ".join(closed.values()), inputs, record, tuple(closed))
    if waiting:
        before = {} if record is None else _without(record.inputs, waiting)
        own = changes(before, inputs) if record is not None else []
        why = f"{listing(waiting)} {'runs' if len(waiting) == 1 else 'run'} first"
        return StageStanding(stage, "to run", "; ".join([*_shortened(own), why]), inputs, record)
    found = _as_it_is(stage, record, inputs, choice.force, records)
    # A process that was killed while it set something aside, or put it back, leaves no folder.
    is_gone = found.state == "to run" or not stage.folder.exists()
    if is_gone and not choice.force and (aside := _set_aside(stage, inputs, records)) is not None:
        known = _of_attempt(stage, aside.folder, aside.record, inputs, records)
        return replace(known, why=f"{known.why}; it is put back from {aside.folder}", aside=aside)
    if found.state == "to run" and not choice.force and _has_answers(stage, record, inputs):
        return replace(found, why=f"{found.why}; what was computed stays", keeps_answers=True)
    return found


def _has_answers(stage: PipelineStage, record: StageRecord | None, inputs: Inputs) -> bool:
    """Whether an evaluation's folder holds the answers that these inputs ask for, or a part of them."""
    if stage.method != EVALUATE or record is None or not stage.folder.is_dir():
        return False
    return same_answers(record.inputs, inputs)


def _as_it_is(
    stage: PipelineStage, record: StageRecord | None, inputs: Inputs, force: bool, records: PipelineRecords
) -> StageStanding:
    """Where a stage stands by its own record and folder."""
    if record is None:
        return StageStanding(stage, "to run", "it has not run yet", inputs, record)
    if record.key != key_of(inputs):
        why = "; ".join(_shortened(changes(record.inputs, inputs))) or "its inputs have changed"
        return StageStanding(stage, "to run", why, inputs, record)
    if force:
        return StageStanding(stage, "to run", "--force", inputs, record)
    return _of_attempt(stage, stage.folder, record, inputs, records)


def _of_attempt(
    stage: PipelineStage, folder: Path, record: StageRecord, inputs: Inputs, records: PipelineRecords
) -> StageStanding:
    """Where a stage stands, given its last attempt with these inputs, which is in a folder."""
    if record.status == "running":
        runner = records.runner()
        why = "it was interrupted, and goes on where it was" if runner is None else f"process {runner} runs it now"
        return StageStanding(stage, "to resume", why, inputs, record)
    if record.status == "failed":
        return StageStanding(stage, "to resume", f"it failed: {record.reason}", inputs, record)
    if flaw := flaw_of(folder, record, records.digests):
        return StageStanding(stage, "to run", flaw, inputs, record)
    if changed := _shortened(readiness_changes(record.inputs, inputs)):
        why = f"{'; '.join(changed)}: its readiness report is made again, without training"
        return StageStanding(stage, "to resume", why, inputs, record, keeps_result=True)
    files = plural(len(record.results) + len(record.others), "file")
    why = f"it ran with the same recipe, data, models and code, and left {files} that are there unchanged"
    return StageStanding(stage, "cached", why, inputs, record)


def _left(
    stage: PipelineStage, record: StageRecord | None, digests: KnownDigests, parents: Mapping[str, StageStanding]
) -> tuple[str, Inputs]:
    if record is None or record.status != "done":
        return "not chosen, and it has no result", {}
    if flaw := flaw_of(stage.folder, record, digests):
        return f"not chosen, but {flaw}", {}
    try:
        inputs = stage_inputs(stage, _results(stage.parents, parents), digests)
    except PrefineError:  # its data may be gone: it is not asked for them
        return "not chosen: its result is used as it is", {}
    changed = _shortened(changes(record.inputs, inputs))
    return "not chosen: its result is used as it is" + (f", although {'; '.join(changed)}" if changed else ""), inputs


def _set_aside(stage: PipelineStage, inputs: Inputs, records: PipelineRecords) -> StageAside | None:
    """What was set aside with these inputs: a result whose files are unchanged, else the last attempt; or None."""
    key = key_of(inputs)
    fitting = [each for each in records.earlier(stage.name) if each.record.key == key]
    whole = [each for each in fitting if each.is_result and not flaw_of(each.folder, each.record, records.digests)]
    attempts = [each for each in fitting if not each.is_result]
    return next(reversed(whole or attempts), None)


def _results(names: Sequence[str], parents: Mapping[str, StageStanding]) -> dict[str, str]:
    """Hashes of the results of stages that are done."""
    return {name: result_digest(known) for name in names if (known := parents[name].record) is not None}


def _why_closed(parent: StageStanding) -> str | None:
    """Why an evaluation's gate does not let an export pass; None if it does, or the stage has no gate.

    One that was not chosen counts only if it is about its current inputs. A gate without a result is refused elsewhere.
    """
    recipe, record, name = parent.stage.recipe, parent.record, parent.stage.name
    if not isinstance(recipe, EvaluateRecipe) or recipe.gate is None or record is None or record.status != "done":
        return None
    if parent.state == "left" and record.key != key_of(parent.inputs):
        changed = _shortened(changes(record.inputs, parent.inputs)) if parent.inputs else []
        return f"the gate of {name} is out of date ({'; '.join(changed) or 'its inputs cannot be read'})"
    return None if record.gate is True else f"the gate of {name} is not passed"


def flaw_of(folder: Path, record: StageRecord, digests: KnownDigests) -> str | None:
    """What is wrong with the files of a finished stage, which are in a folder; None if they are as it left them."""
    for name in (*record.results, *record.others):
        if not (folder / name).is_file():
            return f"{folder / name} is missing"
    for name, digest in record.results.items():
        if digest_of_result(str(record.inputs.get("method")), folder / name, digests) != digest:
            return f"{folder / name} was changed"
    return None


def _without(inputs: Mapping[str, object], stages: Sequence[str]) -> dict[str, object]:
    names = {f"stage {name}" for name in stages}
    return {name: value for name, value in inputs.items() if name not in names}


def _shortened(texts: Sequence[str]) -> list[str]:
    more = len(texts) - _MOST_CHANGES
    return [*texts[:_MOST_CHANGES], *([f"{more} more inputs differ"] if more > 0 else [])]
