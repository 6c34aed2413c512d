"""prefine dpo."""

from __future__ import annotations

from prefine.cli.options import Overrides, RecipePath, Resume


def dpo(recipe: RecipePath, overrides: Overrides, resume: Resume = False) -> None:
    """Train a model directly on preference pairs: DPO and its variants."""
    from prefine import api
    from prefine.recipe.dpo import DpoRecipe
    from prefine.recipe.loading import load_recipe

    api.dpo(load_recipe(recipe, overrides, DpoRecipe), resume=resume, display=True)
