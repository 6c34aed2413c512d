"""What the planner expects of a training stage, to be compared with what came of it."""

from __future__ import annotations

from collections.abc import Mapping

from prefine.errors import PrefineError
from prefine.formatting import duration
from prefine.planning.plan import gigabytes, plan_stage
from prefine.recipe.loading import RecipeSection
from prefine.recipe.stage import StageRecipe

# The tiles of a run's report that a plan has a figure for.
_TIME, _MEMORY = "Time", "Peak memory"


def predicted(recipe: RecipeSection, method: str) -> dict[str, float]:
    """The seconds and peak bytes that a stage is expected to take, by name; {} if it cannot be planned.

    Args:
        recipe: as it is run: the models that it names are there.
    """
    if not isinstance(recipe, StageRecipe):
        return {}
    try:
        plan = plan_stage(recipe, method=method)
    except PrefineError:  # a model or data that the planner does not know; the stage itself says what is wrong
        return {}
    found: dict[str, float] = {"peak_bytes": plan.peak_bytes}
    if plan.seconds is not None:
        found["seconds"] = round(plan.seconds, 1)
    return found


def in_words(planned: Mapping[str, float]) -> dict[str, str]:
    """What was planned, by the label of the figure that it is compared with."""
    found = {}
    if "seconds" in planned:
        found[_TIME] = f"planned {duration(planned['seconds'])}"
    if "peak_bytes" in planned:
        found[_MEMORY] = f"planned {gigabytes(round(planned['peak_bytes']))}"
    return found
