"""What PPO reads, and what it refuses: prompts, lengths and settings that do not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from prefine.data.store import TokenStore
from prefine.errors import DataError, PrefineError
from prefine.recipe import StageRecipe
from tests.training import tiny
from tests.training.test_ppo import QUICK, Make, rows


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
    assert max(lengths) == 60 - 12
    counts = tiny.manifest(Path(made.run))["data"]
    cut = sum(part["prompts_cut"] for part in counts.values())
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
        "training.keep_best and early_stopping_patience go by held-out answers: rollout.heldout_prompts is 0",
    ),
    "patience with no held-out answers": (
        {"rollout.heldout_prompts": 0, "training.early_stopping_patience": 2},
        "training.keep_best and early_stopping_patience go by held-out answers: rollout.heldout_prompts is 0",
    ),
    "weights that decay while they must not move": (
        {"ppo.value_warmup_updates": 2, "training.weight_decay": 0.1},
        "training.weight_decay 0.1 would move the policy during the 2 updates of ppo.value_warmup_updates",
    ),
    "layers computed again with another adapter": (
        {"ppo.critic": "adapter", "model.gradient_checkpointing": True},
        "ppo.critic adapter and model.gradient_checkpointing do not go together",
    ),
    "a guard on a gap that nothing tells of": (
        {"guards.proxy_gap": {"action": "roll_back"}, "training.evaluate_every_steps": None},
        "guards.proxy_gap.action is roll_back, but nothing tells of a gap without reward.judge or heldout_pairs, "
        "training.evaluate_every_steps: set it, or the action to warn or off",
    ),
    "an adaptive controller of nothing": (
        {"kl.controller": "adaptive", "kl.coefficient": 0.0},
        "controller adaptive multiplies the coefficient, which is 0",
    ),
}


@pytest.mark.parametrize("case", INVALID)
def test_recipes_that_are_not_valid(case: str, make: Make) -> None:
    changes, told = INVALID[case]
    with pytest.raises(ValidationError, match=told.replace("(", r"\(")):
        make("ppo", changes=changes)


def test_a_single_token_is_room_enough(make: Make) -> None:
    """The smallest answer, to the last token of a prompt."""
    changes = {"data.max_length_tokens": 8, "rollout.max_new_tokens": 7, "training.max_steps": 1}
    made = make("ppo", "one-prompt-token", {**QUICK, **changes})
    tiny.train(made)
    assert {len(tree.prompt) for tree in TokenStore(Path(made.run) / "data" / "train.arrow")} == {1}
    made = make("ppo", "one-answer-token", {**QUICK, "rollout.max_new_tokens": 1, "training.max_steps": 2})
    tiny.train(made)
    assert rows(made)[-1]["response_tokens"] == 1


def test_critics_of_their_own_adapter_need_one(make: Make) -> None:
    said = refused(make("ppo", changes={"ppo.critic": "adapter", "lora": None}))
    assert said == "RecipeError: ppo.critic: adapter needs lora, and the recipe trains all weights. Set shared."
