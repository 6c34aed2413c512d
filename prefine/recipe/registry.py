"""The recipe of each stage, in the order in which stages follow each other."""

from __future__ import annotations

from prefine.recipe.dpo import DpoRecipe
from prefine.recipe.kto import KtoRecipe
from prefine.recipe.orpo import OrpoRecipe
from prefine.recipe.reward import RewardRecipe
from prefine.recipe.rl import PpoRecipe
from prefine.recipe.sft import SftRecipe
from prefine.recipe.stage import StageRecipe

RECIPES: dict[str, type[StageRecipe]] = {
    "sft": SftRecipe,
    "reward": RewardRecipe,
    "dpo": DpoRecipe,
    "kto": KtoRecipe,
    "orpo": OrpoRecipe,
    "ppo": PpoRecipe,
}
