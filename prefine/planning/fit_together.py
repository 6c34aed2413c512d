"""Changes with which PPO fits: those of quantisation and compute type are made to its reward models, too.

They share the weights then; for PPO alone, such a change would need the base a second time (see other_models.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from prefine.planning.fit import Fit, RecipeChange, changed
from prefine.planning.model_facts import ModelFacts, ScoringFacts
from prefine.recipe.pipeline import Pipeline
from prefine.recipe.pipeline_stage import PipelineStage
from prefine.recipe.stage import StageRecipe

_NUMBER_FIELDS = ("model.quantization", "model.dtype")

Fitting = Callable[[StageRecipe, str, Mapping[str, ModelFacts]], Fit]
"""Fits a recipe of a method, given the results of other stages: see fit_stage."""


@dataclass(frozen=True)
class FittedReward:
    """A stage that trains a reward model, and how it fits by itself."""

    recipe: StageRecipe
    fit: Fit


def rewards_of_its_own(pipeline: Pipeline, stage: PipelineStage) -> list[str]:
    """The stages whose reward models no other stage learns from."""
    learning = [each for each in pipeline.stages.values() if isinstance(each.recipe, StageRecipe)]
    return [
        name
        for name in stage.references
        if pipeline.stages[name].method == "reward" and sum(name in each.references for each in learning) == 1
    ]


def fit_together(
    recipe: StageRecipe,
    method: str,
    rewards: Mapping[str, FittedReward],
    parents: Mapping[str, ModelFacts],
    fit: Fitting,
) -> tuple[Fit, dict[str, Fit]]:
    """How a stage fits, and how the reward models fit that must change with it; none where none must.

    Args:
        rewards: by stage: those that may change.
        parents: the results of other stages, with those of `rewards`.

    Raises:
        ModelError, RecipeError: see fit_stage.
    """
    alone = fit(recipe, method, parents)
    if not rewards or (alone.fits and not alone.made):
        return alone, {}
    alike = {name: replace(parents[name], scores=ScoringFacts(None, None)) for name in rewards}
    together = fit(recipe, method, {**parents, **alike})
    shared = tuple(
        replace(change, costs="as of the policy, which shares its weights")
        for change in together.made
        if change.field in _NUMBER_FIELDS
    )
    if not shared or not together.fits or alone.made == together.made:
        return alone, {}
    fits = {name: _with(shared, each, parents, fit) for name, each in rewards.items()}
    found = {name: each for name, each in fits.items() if each is not None and each.fits}
    made = changed(recipe, together.made)
    if made is None or len(found) < len(rewards):
        return alone, {}
    real = fit(made, method, {**parents, **{name: each.plan.result for name, each in found.items()}})
    return (together, found) if real.fits and not real.made else (alone, {})


def _with(
    shared: tuple[RecipeChange, ...], reward: FittedReward, parents: Mapping[str, ModelFacts], fit: Fitting
) -> Fit | None:
    """How a reward model fits with these changes; None if its recipe's rules refuse them."""
    recipe = changed(reward.recipe, shared)
    if recipe is None:
        return None
    found = fit(recipe, "reward", parents)
    more = {change.field for change in found.made}
    kept = tuple(change for change in shared if change.field not in more)
    return replace(found, before=reward.fit.before, made=(*kept, *found.made))
