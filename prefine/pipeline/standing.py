"""Which stages are cached and which run, each with the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prefine.errors import PrefineError
from prefine.formatting import listing, plural
from prefine.pipeline.digests import KnownDigests, joined_digest
from prefine.pipeline.evaluating import digest_of_result
from prefine.pipeline.inputs import Inputs, changes, key_of, stage_inputs
from prefine.pipeline.records import PipelineRecords, StageRecord
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
        is_aside: cached, but its result was set aside for an attempt with other inputs, and is to be put back.
    """

    stage: PipelineStage
    state: Literal["cached", "to run", "to resume", "blocked", "left"]
    why: str
    inputs: Inputs
    record: StageRecord | None
    gates: tuple[str, ...] = ()
    is_aside: bool = False

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


def standings(pipeline: Pipeline, records: PipelineRecords, choice: ChosenStages) -> list[StageStanding]:
    """Where each stage stands now, in order.

    Raises:
        RecipeError: the folder belongs to another pipeline. DataError: a source does not exist.
    """
    records.require_belongs(pipeline)
    found: dict[str, StageStanding] = {}
    for stage in pipeline.stages.values():
        found[stage.name] = standing(stage, records, choice, found)
    return list(found.values())


def standing(
    stage: PipelineStage, records: PipelineRecords, choice: ChosenStages, parents: Mapping[str, StageStanding]
) -> StageStanding:
    """Where a stage stands, given where its parents stand."""
    record = records.read(stage.name)
    if stage.name not in choice.names:
        return StageStanding(stage, "left", *_left(stage, record, records.digests, parents), record)
    waiting = [name for name in stage.parents if parents[name].runs]
    done = [name for name in stage.parents if name not in waiting]
    inputs = stage_inputs(stage, _results(done, parents), records.digests)
    if closed := {name: why for name in done if (why := _why_closed(parents[name])) is not None}:
        return StageStanding(stage, "blocked", "; ".join(closed.values()), inputs, record, tuple(closed))
    if waiting:
        before = {} if record is None else _without(record.inputs, waiting)
        own = changes(before, inputs) if record is not None else []
        why = f"{listing(waiting)} {'runs' if len(waiting) == 1 else 'run'} first"
        return StageStanding(stage, "to run", "; ".join([*_shortened(own), why]), inputs, record)
    state, why = _state(stage, record, inputs, choice.force, records)
    if state == "to run" and not choice.force and (old := _set_aside(stage, inputs, records)) is not None:
        why = f"it ran with these inputs before, and its result is put back from {records.old_folder(stage.name)}"
        return StageStanding(stage, "cached", why, inputs, old, is_aside=True)
    return StageStanding(stage, state, why, inputs, record)


def _state(
    stage: PipelineStage, record: StageRecord | None, inputs: Inputs, force: bool, records: PipelineRecords
) -> tuple[Literal["cached", "to run", "to resume"], str]:
    if record is None:
        return "to run", "it has not run yet"
    if record.key != key_of(inputs):
        return "to run", "; ".join(_shortened(changes(record.inputs, inputs))) or "its inputs have changed"
    if force:
        return "to run", "--force"
    if record.status == "running":
        runner = records.runner()
        known = "it was interrupted, and goes on where it was" if runner is None else f"process {runner} runs it now"
        return "to resume", known
    if record.status == "failed":
        return "to resume", f"it failed: {record.reason}"
    if flaw := flaw_of(stage.folder, record, records.digests):
        return "to run", flaw
    files = plural(len(record.results) + len(record.others), "file")
    return "cached", f"it ran with the same recipe, data, models and code, and left {files} that are there unchanged"


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


def _set_aside(stage: PipelineStage, inputs: Inputs, records: PipelineRecords) -> StageRecord | None:
    """The record of the earlier result that was set aside, if these were its inputs and its files are unchanged."""
    old = records.read_old(stage.name)
    if old is None or old.status != "done" or old.key != key_of(inputs):
        return None
    return None if flaw_of(records.old_folder(stage.name), old, records.digests) else old


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
