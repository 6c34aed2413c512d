"""prefine sft."""

from __future__ import annotations

from prefine.cli.options import Overrides, RecipePath, Resume


def sft(recipe: RecipePath, overrides: Overrides, resume: Resume = False) -> None:
    """Fine-tune a model on demonstrations, or on the chosen answers of preferences."""
    from prefine import api
    from prefine.recipe.loading import load_recipe
    from prefine.recipe.sft import SftRecipe

    api.sft(load_recipe(recipe, overrides, SftRecipe), resume=resume, display=True)
