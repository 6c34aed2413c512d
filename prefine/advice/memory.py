"""Whether a new pipeline's stages fit this machine's memory, and the cheapest changes with which they do."""

from __future__ import annotations

from typing import Any

from prefine.errors import ModelError, RecipeError
from prefine.models.loading.quantization import INSTALL_QUANTIZATION, bitsandbytes_installed
from prefine.planning.fit import fit_stage
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
    parents: dict[str, ModelFacts] = {}
    changes: dict[str, dict[str, Any]] = {}
    said: list[str] = []
    try:
        machine = machine or machine_for("auto", measured=False)
        budget = machine.usable_bytes
        if budget is None:
            return {}, []
        for stage in pipeline.stages.values():
            if not isinstance(stage.recipe, StageRecipe):
                continue
            rows = longest_rows(stage.method, stage.recipe.data.max_length_tokens)
            fit = fit_stage(
                stage.recipe,
                budget_bytes=budget,
                method=stage.method,
                parents=parents,
                machine=machine,
                workload=rows,
                installed_only=True,
            )
            parents[stage.name] = fit.plan.result
            if fit.made:
                changes[stage.name] = {change.field: change.value for change in fit.made}
            said.append(_sentence(stage.name, gigabytes(fit.plan.peak_bytes), room(machine), fit.fits, fit.changes))
    except (ModelError, RecipeError) as error:
        said.append(f"Memory is not planned: {error}")
    return changes, said


def _sentence(stage: str, peak: str, budget: str, fits: bool, changes: tuple[str, ...]) -> str:
    needs = f"{stage} needs at most about {peak} of the {budget}"
    with_changes = f" with {', '.join(changes)}" if changes else ""
    if fits:
        return f"{needs}{with_changes}."
    more = "" if bitsandbytes_installed() else f", or run {INSTALL_QUANTIZATION} and this again, for weights of 4 bits"
    return f"{needs}{with_changes}: it does not fit. Take a smaller model{more}."
