"""Which method a recipe's file is for: a recipe does not say so itself, as its command does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from prefine.errors import RecipeError
from prefine.recipe.registry import RECIPES


def method_in(values: Mapping[str, Any], name: str) -> str:
    """The method of a recipe, by the sections that only one method has, else by the words of its file's name.

    Args:
        values: of the recipe's file.
        name: of the file, without its ending.

    Raises:
        RecipeError: neither decides.
    """
    sections = {key for key, value in values.items() if isinstance(value, Mapping)}
    fitting = [each for each, kind in RECIPES.items() if sections <= kind.model_fields.keys()] or list(RECIPES)
    # A PPO recipe has a section `reward`, too, whose fields are others.
    reward = values.get("reward")
    if isinstance(reward, Mapping) and "reward" in fitting and "ppo" in fitting:
        fitting = ["ppo" if "name" in reward or "scale" in reward else "reward"]
    named = [each for each in fitting if each in re.split(r"[^a-z0-9]+", name.lower())]
    for found in (fitting, named):
        if len(found) == 1:
            return found[0]
    raise RecipeError(
        f"{name}: the recipe fits the methods {', '.join(fitting)}", f"Add --method {fitting[0]}, for example."
    )
