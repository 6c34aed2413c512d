"""Which method a recipe's file is for."""

from __future__ import annotations

from typing import Any

import pytest

from prefine.errors import RecipeError
from prefine.recipe.loading import recipe_values
from prefine.recipe.method import method_in
from prefine.recipe.shipped import shipped_recipes, stage_of


@pytest.mark.parametrize("name", list(shipped_recipes()))
def test_shipped_recipes_are_known_by_their_files(name: str) -> None:
    assert method_in(recipe_values(shipped_recipes()[name]), name) == stage_of(name)


@pytest.mark.parametrize(
    ("values", "method"),
    [
        ({"dpo": {"beta": 0.2}}, "dpo"),
        ({"rollout": {"slots": 8}}, "ppo"),
        ({"reward": {"name": "runs/reward"}}, "ppo"),
        ({"reward": {"heads": 2}}, "reward"),
        ({"readiness": {}}, "reward"),
    ],
)
def test_sections_of_one_method_decide(values: dict[str, Any], method: str) -> None:
    assert method_in(values, "mine") == method


def test_the_file_name_decides_where_sections_do_not() -> None:
    assert method_in({"model": {}}, "my-sft-2") == "sft"
    with pytest.raises(RecipeError, match="fits the methods sft"):
        method_in({"model": {}}, "mine")
