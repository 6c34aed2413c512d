"""PPO, RLOO and GRPO: where the KL penalty goes, and what becomes of groups whose rewards are all equal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from prefine.data.tokens.trees import TokenTree
from prefine.models.actor_critic import TokenOutputs
from prefine.recipe.rl import PpoRecipe
from prefine.recipe.stage import StageRecipe
from prefine.training.rl import update
from prefine.training.rl.algorithms import ALGORITHMS, GroupAlgorithm, KnownTokens, Targets, algorithm_of
from prefine.training.rl.rewards import Scored
from prefine.training.rl.rollouts import Generations, Rollouts
from tests.training import tiny
from tests.training.rl.test_stage import QUICK, rows

Make = Callable[..., StageRecipe]


def rollouts(kl: list[float], rewards: list[float]) -> Rollouts:
    """Answers of one token each, four to a prompt, with these k1 to the reference and these shaped scores."""
    count = len(kl)
    trees = tuple(TokenTree([1], ([2],) * 4, (None,) * 4, place) for place in range(count // 4))
    zeros, ones = torch.zeros(count), torch.ones(count)
    rows, lengths, ended = tuple(range(count // 4)), ones.long(), ones.bool()
    return Rollouts(trees, rows, ("",) * count, lengths, ended, scored(rewards), torch.tensor(kl), zeros, zeros, zeros)


def scored(shaped: list[float]) -> Scored:
    return Scored(torch.tensor(shaped), torch.tensor(shaped), {"f": 0.0}, {"f": shaped})


def recipe(advantage: str, **rollout: Any) -> PpoRecipe:
    return PpoRecipe.model_validate({"advantage": advantage, "rollout": rollout})


def targets(advantage: str, held: Rollouts) -> Targets:
    """At a coefficient of the KL penalty of 0.05."""
    algorithm = algorithm_of(recipe(advantage))
    return algorithm.targets(held, algorithm.token_rewards(held, 0.05))


def test_a_recipe_can_name_every_algorithm_and_no_other() -> None:
    assert set(ALGORITHMS) == set(get_args(PpoRecipe.model_fields["advantage"].annotation))


def test_equal_rewards_are_no_advantage_in_grpo_whatever_the_kl() -> None:
    """Taken off before the division, KL of 0.5 to 2 nats at beta 0.05 became advantages of up to 1.16."""
    found = targets("grpo", rollouts([0.5, 1.0, 1.5, 2.0], [1.0] * 4))
    assert found.advantages.tolist() == [0.0] * 4


def test_in_grpo_rewards_alone_are_normalised() -> None:
    """0 and 2: 1 / (1.154701 + 0.0001), by hand, whatever the KL."""
    found = targets("grpo", rollouts([9.0, -3.0, 5.0, 1.0], [0.0, 2.0, 0.0, 2.0]))
    assert found.advantages.tolist() == pytest.approx([-0.865951, 0.865951, -0.865951, 0.865951], abs=1e-6)


def test_in_rloo_the_kl_keeps_its_size() -> None:
    """Rewards 1 - 0.05 KL: 0.975, 0.95, 0.925, 0.9, mean 0.9375; times 4/3."""
    found = targets("rloo", rollouts([0.5, 1.0, 1.5, 2.0], [1.0] * 4))
    assert found.advantages.tolist() == pytest.approx([0.05, 1 / 60, -1 / 60, -0.05], abs=1e-6)


ANSWERS = scored([1.0] * 4 + [1.0, 0.0, 1.0, 1.0])
ENDED = torch.ones(8, dtype=torch.bool)


@pytest.mark.parametrize("advantage", ["grpo", "rloo"])
def test_groups_without_signal_are_dropped_where_that_is_asked_for(advantage: str) -> None:
    algorithm = algorithm_of(recipe(advantage))
    assert isinstance(algorithm, GroupAlgorithm)
    assert algorithm.without_signal(ANSWERS).tolist() == [True, False]
    assert algorithm.metrics(ANSWERS) == {"groups_without_signal": 0.5}
    assert algorithm.trained_prompts(ANSWERS, ENDED) == [0, 1]
    assert algorithm_of(recipe(advantage, drop_equal_groups=True)).trained_prompts(ANSWERS, ENDED) == [1]


@pytest.mark.parametrize("advantage", ["grpo", "rloo"])
def test_answers_that_were_cut_are_left_out_where_that_is_asked_for(advantage: str) -> None:
    """A prompt whose answers were all cut has none to learn from; of the other one an answer counts."""
    ended = torch.tensor([False] * 4 + [True, False, False, False])
    assert algorithm_of(recipe(advantage)).trained_prompts(ANSWERS, ended) == [0, 1]
    algorithm = algorithm_of(recipe(advantage, skip_truncated=True))
    assert algorithm.trained_prompts(ANSWERS, ended) == [1]
    assert algorithm.counted(ended).tolist() == ended.tolist()
    held = replace(rollouts([0.0] * 8, [1.0] * 8), ended=ended)
    weights = algorithm.weights(held, [1])
    assert weights is not None
    assert weights.tolist() == [0.0] * 4 + [4.0, 0.0, 0.0, 0.0]


def test_without_either_no_weights_are_computed() -> None:
    assert algorithm_of(recipe("grpo")).weights(rollouts([0.0] * 8, [1.0] * 8), [0, 1]) is None


def test_with_a_critic_no_prompt_is_without_signal() -> None:
    algorithm = algorithm_of(recipe("gae"))
    assert algorithm.trained_prompts(ANSWERS, ENDED) == list(range(8))
    assert algorithm.metrics(ANSWERS) == {}


def known(**more: float) -> KnownTokens:
    """One token of advantage 2 at ratio 1."""
    columns = {"logprobs": -0.5, "reference": -0.5, "values": 1.0, "advantages": 2.0, "returns": 3.0, **more}
    known = {name: torch.tensor([value]) for name, value in columns.items()}
    return KnownTokens(**known, prompts=torch.zeros(1, dtype=torch.int64))


def loss(section: dict[str, Any], values: float | None, entropy: float | None, **more: Any) -> float:
    """The loss of that token."""
    algorithm = algorithm_of(PpoRecipe.model_validate(section))
    of = [None if value is None else torch.tensor([value]) for value in (values, entropy)]
    summed, parts = algorithm.loss(TokenOutputs(torch.tensor([-0.5]), *of), known(reference=-1.2), 0.05, **more)
    assert all(part.shape == (1,) for part in parts.values())
    return float(summed)


def test_the_loss_by_hand() -> None:
    """-2 of the policy; 0.1 (1 - 3)^2 / 2 of the critic; 0.1 times 1.5 nats; k3 of a log ratio of -0.7 is 0.196585."""
    bonus = {"advantage": "gae", "ppo": {"entropy_coefficient": 0.1}}
    assert loss({"advantage": "rloo"}, None, None) == pytest.approx(-2)
    assert loss({"advantage": "gae"}, 1.0, None) == pytest.approx(-1.8)
    assert loss(bonus, 1.0, 1.5) == pytest.approx(-1.95)
    assert loss(bonus, 1.0, 1.5, critic_only=True) == pytest.approx(0.2)
    assert loss({"advantage": "grpo"}, None, None) == pytest.approx(-2 + 0.05 * 0.196585, abs=1e-6)


GROUPS = {**QUICK, "advantage": "grpo", "rollout.samples_per_prompt": 3, "training.max_steps": 2}
GROUPS |= {"reward.missing_eos": "none", "kl.coefficient": 0.5}


def test_an_update_of_equal_rewards_moves_nothing_but_towards_the_reference(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the reference there is no pull: the policy stays but for rounding, and the metrics say why."""
    monkeypatch.setattr(tiny, "letters", lambda rows: [1.0] * len(rows))
    made = make("ppo", changes=GROUPS)
    tiny.train(made)
    for row in rows(made):
        assert row["groups_without_signal"] == 1.0
        assert (row["policy_loss"], row["reward_std"]) == (0.0, 0.0)
        assert row["kl_loss"] == pytest.approx(0.0, abs=1e-9)
        assert row["grad_norm"] == pytest.approx(0.0, abs=1e-5)
    assert row["kl_k3"] == pytest.approx(0.0, abs=1e-9)


def test_an_update_whose_groups_are_all_dropped_takes_no_step(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "letters", lambda rows: [1.0] * len(rows))
    made = make("ppo", changes={**GROUPS, "rollout.drop_equal_groups": True, "training.weight_decay": 0.1})
    said = tiny.train(made)
    assert "update 1: no step, as each prompt's answers all have the same reward\n" in said
    for row in rows(made):
        assert (row["optimiser_steps"], row["loss"], row["ratio_min"], row["ratio_max"]) == (0, 0.0, 1.0, 1.0)
    assert not any(weight.any() for name, weight in tiny.weights(Path(made.run)).items() if "lora_B" in name)


def test_groups_that_are_left_are_trained_on_as_they_were_measured(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ratio is 1, the KL of all answers is in the metrics, and a stop within an update changes nothing."""

    def some(rows: list[dict[str, Any]]) -> list[float]:
        numbers = [int(row["prompt"][-1]["content"].split()[1]) for row in rows]
        varied = [sum(map(ord, row["response"])) % 97 / 97 for row in rows]
        return [score if number % 2 else 1.0 for number, score in zip(numbers, varied, strict=True)]

    monkeypatch.setattr(tiny, "letters", some)
    changes = {**GROUPS, "rollout.drop_equal_groups": True, "training.max_steps": 3, "ppo.minibatches": 2}
    made = make(
        "ppo", changes={**changes, "training.batch_size": 8, "training.learning_rate": 1e-30, "kl.coefficient": 0}
    )
    tiny.train(made)
    shares = [row["groups_without_signal"] for row in rows(made)]
    assert any(share > 0 for share in shares)
    for row in rows(made):
        assert row["ratio_min"] == pytest.approx(1, abs=1e-6)
        assert row["ratio_max"] == pytest.approx(1, abs=1e-6)
        assert row["optimiser_steps"] == 4  # two passes in two parts of what is left


@pytest.mark.parametrize("average", ["answers", "max_length"])
def test_averages_do_not_depend_on_microbatches(average: str, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first update of two runs: answers of all prompts in one microbatch, and of each in its own."""
    real = update.generate_answers

    def two_of_three_ended(*arguments: Any) -> Generations:
        found = real(*arguments)
        found.ended = [place % 3 > 0 for place in range(len(found.texts))]
        return found

    monkeypatch.setattr(update, "generate_answers", two_of_three_ended)
    changes = {**GROUPS, "ppo.loss_average": average, "ppo.clip_high": 0.3, "rollout.skip_truncated": True}
    changes |= {"training.max_steps": 1, "training.batch_size": 8, "training.max_grad_norm": None}
    changes |= {"reward.missing_eos": "none", "lora.dropout": 0.0}
    found = []
    for budget in (16, 10_000):
        made = make("ppo", f"of-{budget}", {**changes, "training.max_tokens_per_microbatch": budget})
        tiny.train(made)
        found.append(rows(made)[0])
    for name in ("loss", "policy_loss", "kl_loss", "grad_norm", "approx_kl"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-4, abs=1e-7), name
    assert found[0]["grad_norm"] > 0
    assert found[0]["ended"] == pytest.approx(2 / 3)


def test_rewards_that_are_all_alike_are_warned_of(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function of 40 to 90 under the default clip of 5: each answer is worth 5."""
    monkeypatch.setattr(tiny, "letters", lambda rows: [40.0 + 50 * place / len(rows) for place in range(len(rows))])
    on = {"training.max_steps": 2, "guards.reward_spread.action": "warn"}
    made = make("ppo", changes={**QUICK, **on, "reward.missing_eos": "none"})
    said = tiny.train(made)
    assert "warning at step 2: reward_std is 0.000, below 1e-6 for 2 steps: all answers get the same reward" in said
    assert "reward_clipped is 1.000, above 0.500 for 2 steps: reward.clip is too small for the scores" in said
    centred = make("ppo", "centred", {**QUICK, **on, "reward.scale": "running"})
    assert "warning at step" not in tiny.train(centred)
    assert all(row["reward_std"] > 0.5 and row["reward_clipped"] == 0 for row in rows(centred))
