"""What PPO reads, and what it refuses: prompts, lengths and settings that cannot be combined."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from prefine.data.tokens.store import TokenStore
from prefine.errors import DataError, PrefineError
from prefine.recipe.stage import StageRecipe
from tests.training import tiny
from tests.training.rl.test_stage import QUICK, Make, rows


def test_preferences_are_read_as_their_prompts(make: Make, tmp_path: Path) -> None:
    """Each prompt once, however many pairs it has; no answer of theirs is in a row."""
    doubled = [*tiny.pairs(20), *[{**row, "chosen": "another answer"} for row in tiny.pairs(20)]]
    pairs = tiny.write_rows(tmp_path / "pairs.jsonl", doubled)
    prompts = tiny.write_rows(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"]} for row in tiny.pairs(20)])
    runs = []
    for name, file in (("pairs", pairs), ("prompts", prompts)):
        runs.append(make("ppo", name, {**QUICK, "data.train": str(file), "training.max_steps": 2}))
        tiny.train(runs[-1])
    assert tiny.weights(Path(runs[0].run))
    assert not tiny.differences(Path(runs[0].run), Path(runs[1].run))
    assert tiny.manifest(Path(runs[0].run))["data"]["train"]["duplicates"] == 20
    store = TokenStore(Path(runs[0].run) / "data" / "train.arrow")
    assert all(tree.answers == () for tree in store)


def test_long_prompts_are_cut_on_the_left_and_counted(make: Make, tmp_path: Path) -> None:
    """Prompt and answer together keep to data.max_length_tokens; each token of T is a byte."""
    prompts = [{"prompt": f"{'far ' * (i % 3) * 10}near {i}"} for i in range(24)]
    changes = {"data.train": str(tiny.write_rows(tmp_path / "prompts.jsonl", prompts)), "data.max_length_tokens": 60}
    made = make("ppo", changes={**QUICK, **changes, "training.max_steps": 2})
    tiny.train(made)
    store = TokenStore(Path(made.run) / "data" / "train.arrow")
    lengths = [len(tree.prompt) for tree in store]
    assert 60 - 12 - len("far ") < max(lengths) <= 60 - 12
    counts = tiny.manifest(Path(made.run))["data"]
    cut = sum(part["texts_cut"] for part in counts.values())
    assert cut == sum(len(row["prompt"]) > 24 for row in prompts)
    assert all(part.get("dropped_too_long", 0) == 0 for part in counts.values())
    assert all(bytes(_bytes(tree.prompt)).decode().rstrip().endswith("assistant") for tree in store)


def _bytes(prompt: Any) -> list[int]:
    words = tiny.make_tokenizer()
    return list(words.decode(prompt, skip_special_tokens=True).encode())


def refused(made: StageRecipe) -> str:
    with pytest.raises(PrefineError) as error:
        tiny.train(made)
    assert "\n" not in str(error.value)
    return f"{type(error.value).__name__}: {error.value}"


def test_a_time_limit_of_a_model_has_no_effect_and_is_refused(make: Make, reward_run: Path) -> None:
    said = refused(make("ppo", changes={"reward.name": str(reward_run), "reward.timeout_s": 5.0}))
    assert said == (
        f"RecipeError: reward.timeout_s 5 has no effect, as {reward_run} is a reward model: it limits calls of "
        "functions. Leave it out."
    )


def test_a_file_without_prompts_is_refused(make: Make, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(DataError, match=r"empty\.jsonl|data\.train"):
        tiny.train(make("ppo", changes={"data.train": str(empty)}))


def test_more_length_than_the_models_context_is_refused(make: Make) -> None:
    said = refused(make("ppo", changes={"data.max_length_tokens": 513}))
    assert said.startswith("RecipeError: data.max_length_tokens is 513, but the context of ")
    assert said.endswith("is 512 tokens. Set it to at most 512: prompt and answer together.")
    tiny.train(make("ppo", "run-2", {**QUICK, "data.max_length_tokens": 512, "training.max_steps": 1}))


def test_more_answer_than_the_reward_model_takes_is_refused(make: Make, reward_run: Path) -> None:
    """It was trained on 160 tokens."""
    changes = {**QUICK, "reward.name": str(reward_run), "data.max_length_tokens": 300, "training.max_steps": 1}
    said = refused(make("ppo", changes={**changes, "rollout.max_new_tokens": 160}))
    assert said.startswith("RecipeError: rollout.max_new_tokens is 160, but ")
    assert "was trained on at most 160 tokens, prompt and answer together. Set it to less than 160." in said


INVALID: dict[str, tuple[dict[str, Any], str]] = {
    "no room for a prompt": (
        {"data.max_length_tokens": 64, "rollout.max_new_tokens": 64},
        "rollout.max_new_tokens 64 leaves a prompt no room within data.max_length_tokens 64: at most 63",
    ),
    "a penalty from before the first token": (
        {"reward.overlong_tokens": 65, "rollout.max_new_tokens": 64},
        "reward.overlong_tokens 65 is more than an answer can have: at most rollout.max_new_tokens, 64",
    ),
    "a largest ratio for a range": (
        {"ppo.clip_high": 1.28},
        "clip_high is 1.28, but must be below 1: it is the range above ratio 1, not the largest ratio: for 1.28 set 0",
    ),
    "a range of 1": ({"ppo.clip_high": 1.0}, "clip_high is 1.0, but must be below 1"),
    "less room above than below": (
        {"ppo.clip": 0.3, "ppo.clip_high": 0.2},
        "clip_high 0.2 is below clip 0.3, so that good answers could move less than bad ones: set clip_high to 0.3 or",
    ),
    "one sample for a pair": (
        {"advantage": "online_dpo", "rollout.samples_per_prompt": 1},
        "advantage online_dpo compares the answers to one prompt",
    ),
    "no pull for dpo": (
        {"advantage": "online_dpo", "kl.coefficient": 0.0},
        "kl.coefficient is the beta of DPO's loss with advantage online_dpo, and at 0 nothing is learned",
    ),
    "one sample for rloo": (
        {"advantage": "rloo", "rollout.samples_per_prompt": 1},
        "advantage rloo compares the answers to one prompt: rollout.samples_per_prompt is 1; set it to 2 or more",
    ),
    "one sample for grpo": (
        {"advantage": "grpo", "rollout.samples_per_prompt": 1},
        "advantage grpo compares the answers to one prompt",
    ),
    "the best of no held-out answers": (
        {"rollout.heldout_prompts": 0, "training.keep_best": True},
        "training.keep_best and early_stopping_patience need held-out answers: rollout.heldout_prompts is 0",
    ),
    "patience with no held-out answers": (
        {"rollout.heldout_prompts": 0, "training.early_stopping_patience": 2},
        "training.keep_best and early_stopping_patience need held-out answers: rollout.heldout_prompts is 0",
    ),
    "the best of nothing held out": (
        {"data.heldout_fraction": 0.0, "training.keep_best": True},
        "need held-out answers: data.heldout_fraction is 0; set it above 0",
    ),
    "layers computed again with another adapter": (
        {"ppo.critic": "adapter", "model.gradient_checkpointing": True},
        "ppo.critic adapter and model.gradient_checkpointing cannot be combined",
    ),
    "a guard on a gap that nothing tells of": (
        {"guards.proxy_gap": {"action": "roll_back"}, "training.evaluate_every_steps": None},
        "guards.proxy_gap.action is roll_back, but nothing measures the gap without reward.judge or heldout_pairs, "
        "training.evaluate_every_steps: set it, or the action to warn or off",
    ),
    "an adaptive controller of nothing": (
        {"kl.controller": "adaptive", "kl.coefficient": 0.0},
        "controller adaptive multiplies the coefficient, which is 0",
    ),
}


WITHOUT_EFFECT: dict[str, tuple[Any, dict[str, Any], str]] = {
    "ppo.gamma": (
        0.99,
        {"advantage": "rloo"},
        "as advantage rloo has no critic: leave it out, or set advantage to gae",
    ),
    "ppo.lam": (0.9, {"advantage": "grpo"}, "as advantage grpo has no critic: leave it out, or set advantage to gae"),
    "ppo.normalise_advantages": (False, {"advantage": "grpo"}, "advantage grpo has no critic"),
    "ppo.critic": ("adapter", {"advantage": "grpo"}, "advantage grpo has no critic"),
    "ppo.critic_learning_rate": (1e-4, {"advantage": "grpo"}, "advantage grpo has no critic"),
    "ppo.value_clip": (None, {"advantage": "rloo"}, "advantage rloo has no critic"),
    "ppo.value_coefficient": (0.5, {"advantage": "grpo"}, "advantage grpo has no critic"),
    "ppo.value_warmup_updates": (2, {"advantage": "grpo"}, "advantage grpo has no critic"),
    "reward.whiten": (True, {"advantage": "grpo"}, "advantage grpo has no critic"),
    "guards.value_loss.limit": (9.0, {"advantage": "rloo"}, "advantage rloo has no critic"),
    "rollout.drop_equal_groups": (True, {}, "gae has no groups"),
    "rollout.skip_truncated": (True, {}, "gae has no groups"),
    "ppo.advantage_std": ("none", {"advantage": "rloo"}, "advantage rloo does not divide by one"),
    "reward.overlong_penalty": (2.0, {}, "reward.overlong_tokens is null"),
    "ppo.clip_high": (0.3, {"ppo.epochs": 1, "ppo.minibatches": 1}, "an update takes one step, at ratio 1"),
    "kl.target": (0.2, {}, "kl.controller is fixed"),
    "kl.horizon": (9, {}, "kl.controller is fixed"),
    "guards.kl_factor": (3.0, {"kl.coefficient": 0.0}, "kl.coefficient is 0"),
    "reward.missing_eos_value": (2.0, {"reward.missing_eos": "none"}, "reward.missing_eos is none"),
    "guards.reward_clipped.limit": (0.9, {"reward.clip": None}, "reward.clip is null"),
    "ppo.loss_average": ("answers", {"advantage": "online_dpo"}, "online_dpo learns from pairs"),
    "ppo.entropy_coefficient": (0.1, {"advantage": "online_dpo"}, "online_dpo learns from pairs"),
    "ppo.clip": (0.1, {"ppo.epochs": 1, "ppo.minibatches": 1}, "an update takes one step, at ratio 1"),
    "ppo.max_kl": (0.5, {"ppo.epochs": 1, "ppo.minibatches": 1}, "an update takes one step, at ratio 1"),
    "reward.judge": ("runs/judge", {"rollout.heldout_prompts": 0}, "no held-out answers are generated"),
    "heldout_pairs": ("pairs.jsonl", {"data.heldout_fraction": 0.0}, "nothing is held out to evaluate on"),
    "guards.proxy_gap.limit": (0.1, {}, "nothing measures the gap"),
}


@pytest.mark.parametrize("field", WITHOUT_EFFECT)
def test_a_setting_without_effect_is_refused(field: str, make: Make) -> None:
    """With its name, value, rule and remedy; where it has an effect, or is as by default, it is taken."""
    value, others, told = WITHOUT_EFFECT[field]
    with pytest.raises(ValidationError) as error:
        make("ppo", changes={**others, field: value})
    assert f"{field} {json.dumps(value)} has no effect, as " in str(error.value)
    assert told in str(error.value)
    written_down = make("ppo", changes=others).model_dump(mode="json", round_trip=True)
    assert type(make("ppo")).model_validate_json(json.dumps(written_down)) == make("ppo", changes=others)


@pytest.mark.parametrize("case", INVALID)
def test_recipes_that_are_not_valid(case: str, make: Make) -> None:
    changes, told = INVALID[case]
    with pytest.raises(ValidationError, match=told.replace("(", r"\(")):
        make("ppo", changes=changes)


def test_a_single_token_is_room_enough(make: Make) -> None:
    """The smallest answer, and prompts of which a character is left between their role headers."""
    prompt = "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
    room = len(tiny.make_tokenizer()(prompt)["input_ids"])
    changes = {"data.max_length_tokens": room + 7, "rollout.max_new_tokens": 7, "training.max_steps": 1}
    made = make("ppo", "one-prompt-token", {**QUICK, **changes})
    tiny.train(made)
    assert {len(tree.prompt) for tree in TokenStore(Path(made.run) / "data" / "train.arrow")} == {room}
    said = refused(make("ppo", "no-room", {**QUICK, **changes, "data.max_length_tokens": room + 6}))
    assert f"do not fit into data.max_length_tokens {room + 6} even when cut" in said
    made = make("ppo", "one-answer-token", {**QUICK, "rollout.max_new_tokens": 1, "training.max_steps": 2})
    tiny.train(made)
    assert rows(made)[-1]["response_tokens"] == 1


def test_critics_of_their_own_adapter_need_one(make: Make) -> None:
    said = refused(make("ppo", changes={"ppo.critic": "adapter", "lora": None}))
    assert said == "RecipeError: ppo.critic: adapter needs lora, but the recipe trains all weights. Set shared."
