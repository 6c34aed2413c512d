"""Which fields of a recipe decide its result. The others may change when a run is resumed, and do not make a pipeline's
stage out of date.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prefine.recipe.loading import RecipeSection
from prefine.recipe.pipeline_methods import OF_ENDPOINTS, EvaluateRecipe
from prefine.recipe.stage import StageRecipe

# Of recipes that train.
_FREE = ("run", "training.keep_checkpoints", "training.trackers", "training.tracker_project")
# So is this one, unless guards may roll back to a checkpoint.
_FREE_WITHOUT_GUARDS = ("training.save_every_steps",)
# Thresholds of the readiness report. The report follows from the finished model and can be made again.
_READINESS = "readiness."


def decides(field: str, recipe: RecipeSection) -> bool:
    """Whether a field, dotted, affects what comes of this recipe: of one that trains, the model and its evaluation."""
    if isinstance(recipe, EvaluateRecipe):
        return field not in OF_ENDPOINTS
    if not isinstance(recipe, StageRecipe):
        return True
    free = _FREE if recipe.guards.may_go_back else _FREE + _FREE_WITHOUT_GUARDS
    return field not in free and not is_of_readiness(field)


def is_of_readiness(field: str) -> bool:
    """Whether a field, dotted, affects the readiness report of a reward model and nothing else."""
    return field.startswith(_READINESS)


def flat_fields(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of a recipe's values by dotted name; sections that are empty have none."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat_fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
