"""prefine reward."""

from __future__ import annotations

from prefine.cli.options import Overrides, RecipePath, Resume


def train(recipe: RecipePath, overrides: Overrides, resume: Resume = False) -> None:
    """Train a reward model on preferences, or on votes, and report whether it is fit for PPO."""
    from rich.console import Console

    from prefine.recipe import RewardRecipe
    from prefine.recipe_loading import load_recipe
    from prefine.training.reward import run_reward

    run_reward(load_recipe(recipe, overrides, RewardRecipe), resume, Console())
