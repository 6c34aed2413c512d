"""Names and values in trackers."""

from __future__ import annotations

import pytest

from prefine.recipe.sft import SftRecipe
from prefine.training.tracking.tracker import TrackedRun, cell_of, flat, tracker_name


def test_a_run_is_called_by_its_folder() -> None:
    names = [
        TrackedRun(SftRecipe(run=run), "sft", "0", False).name
        for run in ("runs/dpo", "runs/a/dpo", "/d/runs/dpo", "dpo")
    ]
    assert names == ["dpo", "a/dpo", "dpo", "dpo"]


def test_runs_in_folders_of_one_name_have_unique_names() -> None:
    names = [
        TrackedRun(SftRecipe(run=run), "sft", run_id, resumed).unique_name
        for run, run_id, resumed in (
            ("/a/dpo", "0123456789abcdef", False),
            ("/a/dpo", "0123456789abcdef", True),
            ("/b/dpo", "fedcba9876543210", False),
        )
    ]
    assert names == ["dpo-01234567", "dpo-01234567", "dpo-fedcba98"]


def test_nested_fields_become_single_values_with_dotted_names() -> None:
    nested = {"a": {"b": {"c": 1}, "d": [1, 2]}, "e": None, "f": True, "g": "x"}
    assert flat(nested) == {"a.b.c": 1, "a.d": "[1, 2]", "e": "null", "f": True, "g": "x"}


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (1.5, 1.5),
        (None, None),
        ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}], "user: Hi\nassistant: Ho"),
        ({"ä": 1}, '{"ä": 1}'),
    ],
)
def test_a_cell_is_one_value(value: object, cell: object) -> None:
    assert cell_of(value) == cell


def test_names_keep_letters_of_all_languages() -> None:
    assert tracker_name("score/höflich v1.0:latest@x") == "score/höflich v1.0_latest_x"
