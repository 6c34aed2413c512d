"""prefine dpo."""

from __future__ import annotations

from prefine.cli.options import Overrides, RecipePath, Resume


def dpo(recipe: RecipePath, overrides: Overrides, resume: Resume = False) -> None:
    """Optimise a model on preference pairs directly (DPO and its relatives)."""
    from rich.console import Console

    from prefine.recipe import DpoRecipe
    from prefine.recipe_loading import load_recipe
    from prefine.training.dpo import run_dpo

    run_dpo(load_recipe(recipe, overrides, DpoRecipe), resume, Console())
