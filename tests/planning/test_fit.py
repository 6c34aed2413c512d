"""The cheapest change that fits: alone where one suffices, together where not, and nothing that is not needed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefine.api import load_recipe
from prefine.errors import RecipeError
from prefine.planning.fit import Fit, bytes_of, fit_stage
from tests.planning.test_plan import BIG, GPU, PAIRS, REWARD

GB = 10**9


def fit(method: str, budget: int, **values: Any) -> Fit:
    recipe = load_recipe(method, {"model": {"name": "stage:big"}, **values})  # type: ignore[call-overload]
    return fit_stage(recipe, budget_bytes=budget, parents={"big": BIG, "reward": REWARD}, machine=GPU, workload=PAIRS)


def test_nothing_is_changed_where_the_recipe_fits() -> None:
    found = fit("dpo", 80 * GB)
    assert found.fits and not found.changes and found.plan is found.before


def test_dpo_of_7b_on_32_gb_takes_a_smaller_token_budget() -> None:
    """It costs the least, and alone it suffices for bf16 weights."""
    found = fit("dpo", 32 * GB)
    assert found.fits and found.plan.peak_bytes <= 32 * GB < found.before.peak_bytes
    assert found.changes == ("training.max_tokens_per_microbatch=2048",)


def test_dpo_of_7b_on_24_gb_recomputes_layers() -> None:
    """A row of 1,200 tokens is computed as a whole: no token budget makes it smaller."""
    found = fit("dpo", 24 * GB)
    assert found.fits and found.changes == ("model.gradient_checkpointing=true",)


def test_dpo_of_7b_on_12_gb_needs_four_bits_and_more() -> None:
    found = fit("dpo", 12 * GB)
    assert found.fits and "model.quantization=nf4" in found.changes
    for left_out in found.made:  # each change is needed
        others = {change.field: change.value for change in found.made if change is not left_out}
        values: dict[str, Any] = {"model": {"name": "stage:big"}}
        for field, value in others.items():
            section, name = field.split(".")
            values.setdefault(section, {})[name] = value
        assert not fit_stage(
            load_recipe("dpo", values), budget_bytes=12 * GB, parents={"big": BIG}, machine=GPU, workload=PAIRS
        ).before.fits(12 * GB)


def test_that_four_bits_need_a_package_is_said_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def costs() -> str:
        return next(change.costs for change in fit("dpo", 12 * GB).made if change.field == "model.quantization")

    assert costs() == "frozen weights of 4 bits; slower products"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert costs() == "frozen weights of 4 bits; slower products; needs pip install 'prefine[quantization]'"


def test_all_weights_of_7b_on_24_gb_become_adapters() -> None:
    found = fit("sft", 24 * GB, lora=None)
    assert found.fits and "lora={}" in found.changes


def test_what_cannot_fit_is_said_with_the_least_that_was_found() -> None:
    found = fit("dpo", GB)
    assert not found.fits
    assert GB < found.plan.peak_bytes < found.before.peak_bytes
    assert found.as_json()["fits"] is False


@settings(max_examples=15, deadline=None)
@given(st.integers(8, 60))
def test_a_plan_that_is_said_to_fit_fits_and_its_settings_give_it(gigabytes: int) -> None:
    from prefine.recipe.loading import load_recipe as loaded
    from prefine.recipe.registry import RECIPES

    found = fit("dpo", gigabytes * GB)
    if not found.changes:
        return
    recipe = loaded(None, ["model.name=stage:big", *found.changes], RECIPES["dpo"])
    again = fit_stage(recipe, budget_bytes=GB, parents={"big": BIG}, machine=GPU, workload=PAIRS).before
    assert again.peak_bytes == found.plan.peak_bytes
    assert found.fits == (again.peak_bytes <= gigabytes * GB)


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GB", 24 * GB), ("16 GiB", 16 * 2**30), ("800MB", 800 * 10**6), ("0.5tb", 5 * 10**11), ("7b", 7)],
)
def test_sizes(text: str, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "24", "GB", "-1GB", "nan", "1e3GB", "0GB", "24 G B", "24QB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="--fit"):
        bytes_of(text)
