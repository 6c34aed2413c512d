"""What a pipeline is going to cost: its stages cached or to run, with time, peak memory and disk of those to run.

Where a stage does not fit into memory, the cheapest changes with which it does are found, as settings of the pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prefine.errors import ModelError, RecipeError
from prefine.formatting import MISSING, duration, plural
from prefine.pipeline.records import PipelineRecords
from prefine.pipeline.standing import StageStanding, chosen, standings
from prefine.pipeline.view import standing_lines
from prefine.planning.fit import Fit, as_options, fit_stage
from prefine.planning.fit_together import FittedReward, fit_together, rewards_of_its_own
from prefine.planning.machine import machine_for
from prefine.planning.model_facts import ModelFacts
from prefine.planning.plan import StagePlan, gigabytes, plan_stage, room
from prefine.planning.row_counts import RowCounts
from prefine.recipe.pipeline import Pipeline
from prefine.recipe.stage import StageRecipe

_ASSESSED = "it is not trained again, only assessed"


@dataclass(frozen=True)
class PlannedStage:
    """A stage and what is predicted of it.

    Attributes:
        standing: whether it is cached, and why.
        plan: as the pipeline is, after the changes that earlier stages need; None for a stage that does not train, or
            that cannot be planned.
        fit: how it fits into memory; None for a stage that does not run, or where the memory is not known.
        why_not: why it cannot be planned.
    """

    standing: StageStanding
    plan: StagePlan | None
    fit: Fit | None = None
    why_not: str = ""

    @property
    def changes(self) -> list[str]:
        """What it needs to fit, as --set takes it."""
        return [] if self.fit is None else [f"{self.prefix}{change}" for change in self.fit.changes]

    @property
    def prefix(self) -> str:
        """Stands before its fields in a pipeline's settings."""
        return f"stages.{self.standing.stage.name}."


def plan_pipeline(pipeline: Pipeline, budget: int | None = None) -> list[PlannedStage]:
    """Every stage of a pipeline with its plan. Nothing is run, and no weights are loaded.

    A stage whose data are not there yet is planned with rows of data.max_length_tokens.

    Args:
        budget: bytes that each stage to run is to fit into; None for what its device has.

    Raises:
        DataError: a source cannot be read.
    """
    results: dict[str, ModelFacts] = {}
    counts = RowCounts()
    found: dict[str, PlannedStage] = {}
    choice = chosen(pipeline, None, None, False)
    for each in standings(pipeline, PipelineRecords(pipeline.folder), choice, data_needed=False):
        recipe, name = each.stage.recipe, each.stage.name
        if not isinstance(recipe, StageRecipe):
            found[name] = PlannedStage(each, None)
            continue
        rewards = {reward: found[reward] for reward in rewards_of_its_own(pipeline, each.stage)}
        try:
            planned = _planned(each, recipe, rewards, results, budget, counts)
        except (ModelError, RecipeError) as error:
            found[name] = PlannedStage(each, None, why_not=_ASSESSED if each.keeps_result else error.problem)
            continue
        for stage, made in planned.items():
            last = made.plan if made.fit is None else made.fit.plan
            if last is not None:
                results[stage] = last.result
        found |= planned
        if each.keeps_result:
            found[name] = PlannedStage(each, None, why_not=_ASSESSED)
    return list(found.values())


def _planned(
    standing: StageStanding,
    recipe: StageRecipe,
    rewards: Mapping[str, PlannedStage],
    parents: Mapping[str, ModelFacts],
    budget: int | None,
    counts: RowCounts,
) -> dict[str, PlannedStage]:
    """A stage with its plan, and the reward models that change with it, by name."""
    name, method, machine = standing.stage.name, standing.stage.method, machine_for(recipe.model.device)
    limit = machine.usable_bytes if budget is None else budget
    if limit is None or not standing.runs or standing.keeps_result:
        plan = plan_stage(recipe, method=method, parents=parents, machine=machine, counts=counts)
        return {name: PlannedStage(standing, plan)}
    size = limit

    def fit(tried: StageRecipe, of: str, known: Mapping[str, ModelFacts]) -> Fit:
        return fit_stage(tried, budget_bytes=size, method=of, parents=known, machine=machine, counts=counts)

    may_change = {
        reward: FittedReward(trained, each.fit)
        for reward, each in rewards.items()
        if each.fit is not None and isinstance(trained := each.standing.stage.recipe, StageRecipe)
    }
    own, others = fit_together(recipe, method, may_change, parents, fit)
    changed = {reward: replace(rewards[reward], fit=each) for reward, each in others.items()}
    return {name: PlannedStage(standing, own.before, own), **changed}


def plan_lines(planned: Sequence[PlannedStage], budget: int | None = None) -> list[str]:
    """For a terminal: where each stage stands; time, memory and disk of those to run, and of all together; what to
    change so that all fit.

    Args:
        budget: as it was given to `plan_pipeline`.
    """
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
        verdict = ""
        if each.fit is not None and not plan.fits(each.fit.budget):
            verdict = f", more than {_memory(plan, budget)}"
        lines.append(
            f"{name}  {duration(plan.seconds)}, peak {gigabytes(plan.peak_bytes)}{verdict}, "
            f"disk {gigabytes(plan.disk_bytes)}"
        )
    return [*lines, _total(to_run), *_fit_lines(to_run, budget)]


def _memory(plan: StagePlan, budget: int | None) -> str:
    return f"the {room(plan.machine)} of this machine" if budget is None else gigabytes(budget)


def _fit_lines(to_run: Sequence[PlannedStage], budget: int | None) -> list[str]:
    """The settings with which all stages fit, and what they cost; nothing where all fit this machine as they are."""
    fits = [(each, each.fit) for each in to_run if each.fit is not None]
    tight = [(each, fit) for each, fit in fits if fit.made or not fit.fits]
    if not tight:
        return [f"each planned stage fits {gigabytes(budget)} as it is"] if fits and budget is not None else []
    changes = [change for each, _ in tight for change in each.changes]
    lines = ["", "to fit:", f"  {as_options(changes)}"] if changes else [""]
    for each, fit in tight:
        name, peak = each.standing.stage.name, gigabytes(fit.plan.peak_bytes)
        if fit.fits:
            lines.append(f"  {name}: {peak} then")
        else:
            lines.append(f"  {name}: {peak} is the least found, which does not fit; take a smaller model")
        lines += [f"    {each.prefix}{change.field}: {change.costs}" for change in fit.made]
    return lines


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
            "fit": None if each.fit is None else each.fit.as_json(each.prefix),
        }
        for each in planned
    ]
