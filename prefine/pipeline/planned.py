"""What a pipeline is going to cost: its stages cached or to run, with time, peak memory and disk of those to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefine.errors import ModelError, RecipeError
from prefine.formatting import MISSING, duration, plural
from prefine.pipeline.records import PipelineRecords
from prefine.pipeline.standing import StageStanding, chosen, standings
from prefine.pipeline.view import standing_lines
from prefine.planning.model_facts import ModelFacts
from prefine.planning.plan import StagePlan, gigabytes, plan_stage
from prefine.recipe.pipeline import Pipeline
from prefine.recipe.stage import StageRecipe


@dataclass(frozen=True)
class PlannedStage:
    """A stage and what is predicted of it.

    Attributes:
        standing: whether it is cached, and why.
        plan: None for a stage that does not train, or that cannot be planned.
        why_not: why it cannot.
    """

    standing: StageStanding
    plan: StagePlan | None
    why_not: str = ""


def plan_pipeline(pipeline: Pipeline) -> list[PlannedStage]:
    """Every stage of a pipeline with its plan. Nothing is run, and no weights are loaded.

    Raises:
        DataError: a source does not exist.
    """
    results: dict[str, ModelFacts] = {}
    found = []
    for each in standings(pipeline, PipelineRecords(pipeline.folder), chosen(pipeline, None, None, False)):
        recipe = each.stage.recipe
        if not isinstance(recipe, StageRecipe):
            found.append(PlannedStage(each, None))
            continue
        try:
            plan = plan_stage(recipe, method=each.stage.method, parents=results)
        except (ModelError, RecipeError) as error:
            found.append(PlannedStage(each, None, error.problem))
            continue
        results[each.stage.name] = plan.result
        found.append(PlannedStage(each, plan))
    return found


def plan_lines(planned: Sequence[PlannedStage]) -> list[str]:
    """For a terminal: where each stage stands; then time, memory and disk of those to run, and of all together."""
    lines = standing_lines([each.standing for each in planned])
    to_run = [each for each in planned if each.standing.runs]
    if not to_run:
        return [*lines, "nothing is to run"]
    width = max(len(each.standing.stage.name) for each in to_run)
    lines.append("")
    for each in to_run:
        name, plan = f"{each.standing.stage.name:<{width}}", each.plan
        if plan is None:
            lines.append(f"{name}  not planned{f': {each.why_not}' if each.why_not else ''}")
            continue
        limit = plan.memory_limit
        verdict = "" if limit is None or plan.fits(limit) else f", more than the {gigabytes(limit)} of this machine"
        lines.append(
            f"{name}  {duration(plan.seconds)}, peak {gigabytes(plan.peak_bytes)}{verdict}, "
            f"disk {gigabytes(plan.disk_bytes)}"
        )
    return [*lines, _total(to_run)]


def _total(to_run: Sequence[PlannedStage]) -> str:
    plans = [each.plan for each in to_run if each.plan is not None]
    if not plans:
        return f"{plural(len(to_run), 'stage')} to run"
    known = [plan.seconds for plan in plans if plan.seconds is not None]
    time = duration(sum(known)) if len(known) == len(plans) else MISSING
    peak, disk = max(plan.peak_bytes for plan in plans), sum(plan.disk_bytes for plan in plans)
    without = len(to_run) - len(plans)
    rest = f" (without the {plural(without, 'stage')} not planned)" if without else ""
    return f"{plural(len(to_run), 'stage')} to run: {time}, peak {gigabytes(peak)}, disk {gigabytes(disk)}{rest}"


def plan_json(planned: Sequence[PlannedStage]) -> list[dict[str, Any]]:
    """For --json."""
    return [
        {
            "stage": each.standing.stage.name,
            "method": each.standing.stage.method,
            "state": each.standing.state,
            "why": each.standing.why,
            "plan": None if each.plan is None else each.plan.as_json(),
        }
        for each in planned
    ]
