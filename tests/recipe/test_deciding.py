"""Which fields of a recipe decide its result."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefine.recipe.deciding import decides, flat_fields, is_of_readiness
from prefine.recipe.pipeline_methods import ExportRecipe
from prefine.recipe.reward import RewardRecipe
from prefine.recipe.sft import SftRecipe

DOCS = Path(__file__).parents[2] / "docs"


def test_fields_are_named_by_their_sections() -> None:
    values = {"run": "a", "lora": None, "data": {"columns": {}, "train": ["x"], "more": {"deep": 1}}}
    assert dict(flat_fields(values)) == {"run": "a", "lora": None, "data.train": ["x"], "data.more.deep": 1}


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("run", False),
        ("training.keep_checkpoints", False),
        ("training.trackers", False),
        ("training.tracker_project", False),
        ("training.save_every_steps", False),
        ("readiness.min_accuracy", False),
        ("training.learning_rate", True),
        ("training.log_every_steps", True),
        ("model.name", True),
    ],
)
def test_what_decides_a_training_s_result(field: str, expected: bool) -> None:
    assert decides(field, RewardRecipe()) is expected
    assert is_of_readiness(field) is field.startswith("readiness")


def test_saving_decides_where_a_guard_may_go_back_to_what_was_saved() -> None:
    recipe = SftRecipe.model_validate({"guards": {"non_finite": {"action": "roll_back"}}})
    assert decides("training.save_every_steps", recipe) and not decides("training.keep_checkpoints", recipe)


def test_of_other_recipes_every_field_decides() -> None:
    assert decides("run", ExportRecipe(model="stage:sft"))


def test_the_page_on_recipes_lists_these_fields() -> None:
    said = (DOCS / "recipes.md").read_text("utf-8").partition("`--resume` resumes")[2].partition("\n\n")[0]
    recipe = RewardRecipe()
    free = [name for name, _ in flat_fields(recipe.model_dump(mode="json")) if not decides(name, recipe)]
    assert len(free) > 5
    assert all(f"`{'readiness' if is_of_readiness(name) else name}`" in said for name in free)
