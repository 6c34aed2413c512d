"""prefine orpo."""

from __future__ import annotations

from prefine.cli.options import Overrides, RecipePath, Resume


def orpo(recipe: RecipePath, overrides: Overrides, resume: Resume = False) -> None:
    """Train a model on preference pairs without a reference: SFT and preferences in one stage."""
    from prefine import api
    from prefine.recipe.loading import load_recipe
    from prefine.recipe.orpo import OrpoRecipe

    api.orpo(load_recipe(recipe, overrides, OrpoRecipe), resume=resume, display=True)
