"""Whether a new pipeline's stages fit this machine's memory, and the cheapest changes with which they do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefine.errors import ModelError, RecipeError
from prefine.models.loading.quantization import INSTALL_QUANTIZATION, bitsandbytes_installed
from prefine.planning.fit import Fit, fit_stage
from prefine.planning.fit_together import FittedReward, fit_together, rewards_of_its_own
from prefine.planning.machine import Machine, machine_for
from prefine.planning.model_facts import ModelFacts
from prefine.planning.plan import gigabytes, room
from prefine.planning.workload import longest_rows
from prefine.recipe.pipeline import Pipeline
from prefine.recipe.stage import StageRecipe


def context_of(model: str) -> int | None:
    """The most tokens that a model reads at once; None where it is not there, or of an unknown kind."""
    try:
        return ModelFacts.of(model).architecture.context
    except (ModelError, ValueError):  # a name that no file can have: what reads the pipeline says so
        return None


def fitted(pipeline: Pipeline, machine: Machine | None = None) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Changes by stage and dotted name, empty where a stage fits as it is; and a sentence for each stage.

    No change needs a package that is not installed. The longest rows that the recipes allow are assumed: then no data
    has to be tokenised, and no later row needs more.

    Args:
        pipeline: with models that can be found; for others nothing is changed, and the sentence says so.
        machine: None for this one.
    """
    fits: dict[str, Fit] = {}
    unplanned = []
    try:
        machine = machine or machine_for("auto", measured=False)
        _fit_all(pipeline, machine, fits)
    except (ModelError, RecipeError) as error:
        unplanned.append(f"Memory is not planned: {error}")
    changes = {name: {change.field: change.value for change in each.made} for name, each in fits.items() if each.made}
    return changes, [*(_sentence(name, each) for name, each in fits.items()), *unplanned]


def _fit_all(pipeline: Pipeline, machine: Machine, fits: dict[str, Fit]) -> None:
    """Add how each training stage fits, by name; nothing where the memory is not known."""
    budget = machine.usable_bytes
    if budget is None:
        return

    def fit(recipe: StageRecipe, method: str, known: Mapping[str, ModelFacts]) -> Fit:
        return fit_stage(
            recipe,
            budget_bytes=budget,
            method=method,
            parents=known,
            machine=machine,
            workload=longest_rows(method, recipe.data.max_length_tokens),
            installed_only=True,
        )

    for stage in pipeline.stages.values():
        if isinstance(stage.recipe, StageRecipe):
            rewards = {
                name: FittedReward(trained, fits[name])
                for name in rewards_of_its_own(pipeline, stage)
                if isinstance(trained := pipeline.stages[name].recipe, StageRecipe)
            }
            parents = {name: each.plan.result for name, each in fits.items()}
            own, others = fit_together(stage.recipe, stage.method, rewards, parents, fit)
            fits |= {stage.name: own, **others}


def _sentence(stage: str, fit: Fit) -> str:
    plan = fit.plan
    needs = f"{stage} needs at most about {gigabytes(plan.peak_bytes)} of the {room(plan.machine)}"
    with_changes = f" with {', '.join(fit.changes)}" if fit.made else ""
    if fit.fits:
        return f"{needs}{with_changes}."
    more = "" if bitsandbytes_installed() else f", or run {INSTALL_QUANTIZATION} and this again, for weights of 4 bits"
    return f"{needs}{with_changes}: it does not fit. Take a smaller model{more}."
