"""PPO and its reward model take the same quantisation and compute type where PPO does not fit otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from prefine.api import load_recipe
from prefine.planning.fit import Fit, changed, fit_stage
from prefine.planning.fit_together import FittedReward, fit_together, rewards_of_its_own
from prefine.planning.model_facts import ModelFacts, ScoringFacts
from prefine.planning.workload import longest_rows
from prefine.recipe.pipeline import checked_pipeline
from prefine.recipe.stage import StageRecipe
from tests.planning.test_plan import BIG, GPU

GB = 10**9
PPO = load_recipe(
    "ppo",
    {
        "model": {"name": "stage:big"},
        "data": {"max_length_tokens": 512},
        "rollout": {"max_new_tokens": 160},
        "reward": {"name": "stage:reward"},
    },
)


def reward_recipe(**values: Any) -> StageRecipe:
    return load_recipe("reward", {"model": {"name": "stage:big"}, "data": {"max_length_tokens": 512}, **values})


def fitting(budget: int) -> Any:
    def fit(recipe: StageRecipe, method: str, parents: Mapping[str, ModelFacts]) -> Fit:
        rows = longest_rows(method, recipe.data.max_length_tokens)
        return fit_stage(recipe, budget_bytes=budget * GB, method=method, parents=parents, machine=GPU, workload=rows)

    return fit


def fits(budget: int, recipe: StageRecipe | None = None) -> tuple[Fit, Fit, dict[str, Fit], Fit]:
    """PPO alone, PPO together, the reward models that change with it, and the reward model alone."""
    fit, trained = fitting(budget), recipe or reward_recipe()
    reward = fit(trained, "reward", {"big": BIG})
    parents = {"big": BIG, "reward": reward.plan.result}
    own, others = fit_together(PPO, "ppo", {"reward": FittedReward(trained, reward)}, parents, fit)
    return fit(PPO, "ppo", parents), own, others, reward


def test_where_ppo_alone_does_not_fit_both_take_four_bits() -> None:
    """The weights are 15.2 GB, so that no second copy fits into 17."""
    alone, together, others, reward = fits(17)
    assert not alone.fits and reward.fits
    assert together.fits and "model.quantization=nf4" in together.changes
    (changed_reward,) = others.values()
    assert changed_reward.fits and "model.quantization=nf4" in changed_reward.changes
    assert changed_reward.before is reward.before
    assert changed_reward.plan.result.scores == ScoringFacts("nf4", "bfloat16")
    # What is written into both recipes is what was planned.
    recipes = [changed(recipe, each.made) for recipe, each in ((reward_recipe(), changed_reward), (PPO, together))]
    assert recipes[0] is not None and recipes[1] is not None
    again = fitting(17)(recipes[0], "reward", {"big": BIG})
    last = fitting(17)(recipes[1], "ppo", {"big": BIG, "reward": again.plan.result})
    assert not again.made and not last.made
    assert last.plan.peak_bytes == together.plan.peak_bytes


@pytest.mark.parametrize("budget", [80, 20, 12, 1])
def test_where_ppo_fits_alone_or_nothing_fits_the_reward_model_stays(budget: int) -> None:
    """In 12 GB both take four bits by themselves."""
    alone, together, others, _ = fits(budget)
    assert (together.changes, others) == (alone.changes, {})
    assert together.fits == (budget > 1)


def test_a_reward_model_that_cannot_change_stays() -> None:
    """On principal components it needs whole weights."""
    recipe = reward_recipe(lora={"init": "pissa"})
    alone, together, others, reward = fits(17, recipe)
    assert reward.fits and not alone.fits
    assert (together.changes, others) == (alone.changes, {})


def test_a_reward_model_of_several_stages_is_none_of_its_own() -> None:
    def own(*names: str) -> dict[str, list[str]]:
        begun = {"data": {"train": "p.jsonl"}, "model": {"name": "org/m"}}
        stages: dict[str, Any] = {"reward": {"method": "reward", **begun}}
        stages |= {each: {"method": "ppo", **begun, "reward": {"name": "stage:reward"}} for each in names}
        stages["better"] = {"method": "evaluate", "candidate": f"stage:{names[0]}", "reward": "stage:reward"}
        made = checked_pipeline({"stages": stages}, [], "p")
        return {name: rewards_of_its_own(made, stage) for name, stage in made.stages.items() if stage.method == "ppo"}

    assert own("ppo") == {"ppo": ["reward"]}
    assert own("one", "two") == {"one": [], "two": []}
