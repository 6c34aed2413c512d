"""prefine sft."""

from __future__ import annotations

from prefine.cli.options import Overrides, RecipePath, Resume


def sft(recipe: RecipePath, overrides: Overrides, resume: Resume = False) -> None:
    """Fine-tune a model on demonstrations, or on the chosen answers of preferences."""
    from rich.console import Console

    from prefine.recipe import SftRecipe
    from prefine.recipe_loading import load_recipe
    from prefine.training.sft import run_sft

    run_sft(load_recipe(recipe, overrides, SftRecipe), resume, Console())
