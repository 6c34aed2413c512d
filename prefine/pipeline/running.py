"""Runs a pipeline: each stage after its parents, once for the same inputs.

A stage's record says what it began with before it begins, and what it left once it is done. So whatever ends the
process, the next call sees which stages are done, and goes on with the one that was running.
"""

from __future__ import annotations

import gc
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from prefine.errors import CheckpointError, Paused, PrefineError, RecipeError, Stopped
from prefine.formatting import duration, listing, plural
from prefine.pipeline.earlier import drop_earlier, make_room, put_back, take_over
from prefine.pipeline.inputs import key_of
from prefine.pipeline.prediction import predicted
from prefine.pipeline.records import PipelineLock, PipelineRecords, StageRecord
from prefine.pipeline.remedies import in_pipeline
from prefine.pipeline.standing import ChosenStages, StageStanding, chosen, flaw_of, standing, standings
from prefine.pipeline.summary import write_summary
from prefine.pipeline.view import PipelineView
from prefine.pipeline.work import require_stage, run_stage
from prefine.recipe.pipeline import Pipeline
from prefine.recipe.pipeline_stage import PipelineStage
from prefine.runs.ownership import refuse_foreign_page

_ENDED = {"running": "was interrupted", "failed": "failed"}
_KEPT = "What is finished is kept: the same command goes on from here."


@dataclass(frozen=True)
class PipelineResult:
    """A pipeline that ran to its end.

    Attributes:
        folder: of the pipeline.
        page: report.html in it.
        ran: the stages that ran now, in order. cached: those that did not need to.
        failed_gates: evaluations whose gate is not passed, or out of date; they stop exports of their candidates.
    """

    folder: Path
    page: Path
    ran: tuple[str, ...]
    cached: tuple[str, ...]
    failed_gates: tuple[str, ...]


def run_chosen(pipeline: Pipeline, choice: ChosenStages, view: PipelineView) -> PipelineResult:
    """Run the chosen stages that are not cached.

    Raises:
        PrefineError: a stage cannot go on; what is finished is kept. Paused: interrupted.
    """
    page = pipeline.folder / "report.html"
    records = PipelineRecords(pipeline.folder)
    with PipelineLock(records):
        refuse_foreign_page(page)
        before = standings(pipeline, records, choice)
        _require(before, records)
        records.claim(pipeline)
        view.begin(before)
        run = _Running(pipeline, choice, view, records)
        try:
            for place, stage in enumerate(pipeline.stages.values(), start=1):
                run.take(stage.name, place)
        finally:
            with suppress(CheckpointError):  # on a full disk the first error matters
                records.digests.save()
                write_summary(pipeline, records, _all_standings(pipeline, records), page)
        failed = tuple(
            name
            for name in choice.names
            if (record := records.read(name)) is not None and record.status == "done" and record.gate is False
        )
        failed = tuple(dict.fromkeys([*failed, *(name for each in run.found.values() for name in each.gates)]))
        view.say(_closing(run, failed, page))
    return PipelineResult(pipeline.folder, page, tuple(run.ran), tuple(run.cached), failed)


def _require(found: list[StageStanding], records: PipelineRecords) -> None:
    """Refuse before any work what can be seen now."""
    states = {each.stage.name: each for each in found}
    for each in found:
        if not each.runs:
            continue
        try:
            require_stage(each.stage)
        except PrefineError as error:
            raise _of_stage(each.stage.name, error, error.remedy) from error
        for parent in each.stage.parents:
            if (lacking := _lacking(states[parent], records)) is not None:
                raise RecipeError(
                    f"stage {each.stage.name} needs the result of stage {parent}, {lacking}",
                    f"Run that one first: --only {parent}, or leave --from and --only out.",
                )


def _lacking(parent: StageStanding, records: PipelineRecords) -> str | None:
    """Why a stage that was not chosen cannot be used as it is, as a clause; None if it can."""
    if parent.state != "left":
        return None
    if parent.record is None or parent.record.status != "done":
        return "which has none"
    flaw = flaw_of(parent.stage.folder, parent.record, records.digests)
    return None if flaw is None else f"but {flaw}"


def _all_standings(pipeline: Pipeline, records: PipelineRecords) -> dict[str, StageStanding]:
    """Where all stages stand, whichever were chosen; {} if an input cannot be read."""
    try:
        found = standings(pipeline, records, chosen(pipeline, None, None, False))
    except PrefineError:
        return {}
    return {each.stage.name: each for each in found}


class _Running:
    """One call: what each stage came to.

    Args:
        pipeline, choice, view, records: see run_chosen.

    Attributes:
        found: stage -> where it stands.
        ran, cached: names of stages.
    """

    def __init__(self, pipeline: Pipeline, choice: ChosenStages, view: PipelineView, records: PipelineRecords) -> None:
        self._pipeline, self._choice, self._view, self._records = pipeline, choice, view, records
        self.found: dict[str, StageStanding] = {}
        self.ran: list[str] = []
        self.cached: list[str] = []

    def take(self, name: str, place: int) -> None:
        """Run a stage if it is to run."""
        now = standing(self._pipeline.stages[name], self._records, self._choice, self.found)
        self.found[name] = now
        if now.aside is not None:
            current = self._records.read(name)
            self._say_set_aside(name, current, put_back(now.stage, now.aside, self._records))
        if now.state == "cached":
            self._drop_earlier(now.stage, attempts=False)
            self.cached.append(name)
        elif now.state == "blocked":
            exported = now.record is not None and now.record.status == "done" and now.stage.folder.is_dir()
            remains = f"; {now.stage.folder} still holds an earlier export" if exported else ""
            self._view.ended(name, "blocked", f"stage {name} is not run: {now.why}{remains}")
        elif now.runs:
            self._view.stage(now, place)
            record = self._run(now)
            self.found[name] = replace(now, state="cached", record=record)
            self.ran.append(name)

    def _run(self, now: StageStanding) -> StageRecord:
        name, began = now.stage.name, time.monotonic()
        before = now.record if now.state == "to resume" or now.keeps_answers else None
        if before is None:
            self._say_set_aside(name, now.record, make_room(now.stage, now.record, self._records))
        spent = 0.0 if before is None else before.seconds
        planned = predicted(self._pipeline.in_place(name), now.stage.method) if before is None else before.planned
        forced = self._choice.force if before is None else before.forced
        record = StageRecord("running", key_of(now.inputs), now.inputs, seconds=spent, planned=planned, forced=forced)
        self._records.write(name, record)

        def seconds() -> float:
            return round(spent + time.monotonic() - began, 1)

        try:
            take_over(now.stage, self._records, compared=not record.forced)
            result = run_stage(self._pipeline, now.stage, self._view.display, self._records.digests)
        except (Stopped, KeyboardInterrupt) as error:
            self._records.write(name, replace(record, seconds=seconds()))
            self._view.ended(name, "failed", f"stage {name}: interrupted")
            raise Paused(f"interrupted in stage {name}; what is done is kept") from error
        except Exception as error:
            reason = error.problem if isinstance(error, PrefineError) else f"{type(error).__name__}: {error}"
            with suppress(CheckpointError):
                self._records.write(name, replace(record, status="failed", reason=reason, seconds=seconds()))
            self._view.ended(name, "failed", f"stage {name} failed")
            if isinstance(error, PrefineError):
                remedy = in_pipeline(error.remedy, now.stage)
                raise _of_stage(name, error, f"{remedy} {_KEPT}{self._where_earlier(name)}") from error
            raise
        finally:
            _free_memory()
        done = replace(
            record, status="done", results=result.results, others=result.others, gate=result.gate, seconds=seconds()
        )
        self._records.write(name, done)
        self._drop_earlier(now.stage, attempts=not now.keeps_result)
        text = "its gate is not passed" if result.gate is False else "done"
        self._view.ended(name, "done", f"stage {name}: {text} in {duration(done.seconds)}", done.seconds)
        return done

    def _where_earlier(self, name: str) -> str:
        results = [each.folder for each in self._records.earlier(name) if each.is_result]
        return (
            f" Its earlier result is in {results[-1]}, and is put back if its inputs are set back." if results else ""
        )

    def _say_set_aside(self, name: str, before: StageRecord | None, place: Path | None) -> None:
        """Say where an attempt that did not end was set aside, if one was."""
        if place is not None and before is not None and before.status != "done":
            self._view.say(
                f"stage {name}: its earlier attempt, which {_ENDED[before.status]}, is set aside in {place}; it goes "
                "on if its inputs are set back, and is deleted once the stage has run to its end with others"
            )

    def _drop_earlier(self, stage: PipelineStage, *, attempts: bool) -> None:
        for kept in drop_earlier(stage, self._records, attempts=attempts):
            why = f"is tagged {' '.join(kept.tags)}" if kept.tags else f"also holds {listing(list(kept.foreign))}"
            self._view.say(f"stage {stage.name}: the earlier result that {why} is kept in {kept.folder}")


def _of_stage(name: str, error: PrefineError, remedy: str) -> PrefineError:
    """An error with the stage's name."""
    field = "" if error.field is None else f"{error.field}: "
    return PrefineError(f"stage {name}: {field}{error.problem}", remedy)


def _free_memory() -> None:
    """Give the models of a finished stage back before the next one loads its own."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _closing(run: _Running, failed: tuple[str, ...], page: Path) -> str:
    parts = [f"{plural(len(run.ran), 'stage')} run", f"{len(run.cached)} cached"]
    if failed:
        parts.append(f"the gate of {listing(list(failed))} is not passed")
    return f"{'; '.join(parts)}: {page}"
