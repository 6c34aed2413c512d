"""A stage that evaluates has the options of the command, under the same names."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from prefine.cli.evaluate import evaluate
from prefine.recipe.pipeline_methods import EvaluateRecipe

DOCS = Path(__file__).resolve().parents[2] / "docs" / "pipeline.md"
# The pipeline names the folder, and has --force for all stages. The type is that of training recipes' model.dtype.
ONLY_OPTIONS, ONLY_FIELDS = {"out", "force"}, {"dtype"}
JUDGE = {"judge": "http://127.0.0.1:9/v1", "judge_model": "m"}


def test_the_fields_are_the_options_of_the_command() -> None:
    options = inspect.signature(evaluate).parameters.keys()
    assert options - ONLY_OPTIONS == EvaluateRecipe.model_fields.keys() - ONLY_FIELDS


def test_the_documentation_lists_them_all() -> None:
    (row,) = [line for line in DOCS.read_text("utf-8").splitlines() if line.startswith("| `evaluate` |")]
    listed = re.findall(r"`(\w+)`", row.partition("|")[2].partition("|")[2])
    assert sorted(listed) == sorted(EvaluateRecipe.model_fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"judge_max_tokens": 7}, "judge_max_tokens has no effect without a judge"),
        ({**JUDGE, "price_in": 1.0}, "price_out is missing"),
        ({**JUDGE, "price_in": -1.0, "price_out": 1.0}, "greater than or equal to 0"),
        ({"timeout": 5.0}, "timeout has no effect, as neither a model nor a judge is an endpoint"),
        ({**JUDGE, "at_once": 0}, "greater than or equal to 1"),
    ],
)
def test_a_field_without_an_effect_or_with_a_wrong_value_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EvaluateRecipe.model_validate({"candidate": "runs/a", **fields})


def test_requests_to_a_compared_endpoint_have_their_settings() -> None:
    found = EvaluateRecipe.model_validate({"candidate": "runs/a", "against": "https://host/v1#m", "attempts": 2})
    assert found.attempts == 2
