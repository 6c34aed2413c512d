"""prefine kto."""

from __future__ import annotations

from prefine.cli.options import Overrides, RecipePath, Resume


def kto(recipe: RecipePath, overrides: Overrides, resume: Resume = False) -> None:
    """Train a model on thumbs up and down for single answers: KTO, and APO-zero without pairs."""
    from prefine import api
    from prefine.recipe.kto import KtoRecipe
    from prefine.recipe.loading import load_recipe

    api.kto(load_recipe(recipe, overrides, KtoRecipe), resume=resume, display=True)
