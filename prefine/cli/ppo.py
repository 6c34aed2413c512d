"""prefine ppo."""

from __future__ import annotations

from typing import Annotated

import typer

from prefine.cli.options import Overrides, RecipePath, Resume


def ppo(
    recipe: RecipePath,
    overrides: Overrides,
    resume: Resume = False,
    force: Annotated[
        bool, typer.Option("--force", help="Use a reward model although its readiness report says no-go.")
    ] = False,
) -> None:
    """Optimise a model against a reward: PPO, RLOO or GRPO."""
    from prefine import api
    from prefine.recipe.loading import load_recipe
    from prefine.recipe.rl import PpoRecipe

    api.ppo(load_recipe(recipe, overrides, PpoRecipe), resume=resume, display=True, force=force)
