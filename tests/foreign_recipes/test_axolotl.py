"""Configurations of axolotl: two of its own examples, and a place for every setting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefine.errors import RecipeError
from prefine.foreign_recipes.axolotl import from_axolotl
from prefine.foreign_recipes.settings import Moved
from prefine.foreign_recipes.text import recipe_text
from prefine.recipe.loading import load_recipe
from prefine.recipe.registry import RECIPES
from tests.recipe.test_foreign_names import AXOLOTL

SHARED = {
    **{"output_dir": "out", "gradient_accumulation_steps": 4, "micro_batch_size": 2, "lr_scheduler": "cosine"},
    **{"learning_rate": 0.0002, "bf16": "auto", "gradient_checkpointing": True, "logging_steps": 1},
    **{"evals_per_epoch": 4, "saves_per_epoch": 1, "weight_decay": 0.0, "optimizer": "adamw_bnb_8bit"},
    **{"lora_r": 32, "lora_alpha": 16, "lora_dropout": 0.05, "wandb_project": None, "tf32": False},
}
# As its examples/llama-3/qlora-1b.yml and instruct-dpo-lora-8b.yml.
QLORA = SHARED | {
    **{"base_model": "org/1b", "load_in_8bit": False, "load_in_4bit": True, "adapter": "qlora", "val_set_size": 0.1},
    **{"datasets": [{"path": "org/rows", "type": "alpaca"}], "sequence_len": 2048, "sample_packing": True},
    **{"lora_target_modules": ["q_proj", "v_proj"], "warmup_ratio": 0.1, "num_epochs": 1},
    **{"attn_implementation": "flash_attention_2", "loss_watchdog_threshold": 5.0},
    "special_tokens": {"pad_token": "<pad>"},
}
DPO = SHARED | {
    **{"base_model": "org/8b", "load_in_8bit": True, "adapter": "lora", "rl": "dpo", "chat_template": "llama3"},
    **{"datasets": [{"path": "org/pairs", "type": "chat_template.default", "field_messages": "conversation"}]},
    **{"lora_target_linear": True, "warmup_steps": 10, "sequence_len": 4096, "val_set_size": 0.05},
    **{"flash_attention": True, "num_epochs": 4},
}


def moved(tmp_path: Path, **settings: object) -> Moved:
    (tmp_path / "train.yaml").write_text(json.dumps(settings))
    return from_axolotl(tmp_path / "train.yaml")


def values(done: Moved) -> dict[str, object]:
    return {path: written.value for path, written in done.fields.items()}


@pytest.mark.parametrize(
    ("example", "stage", "expected"),
    [
        (
            QLORA,
            "sft",
            {
                **{"model.name": "org/1b", "model.quantization": "nf4", "data.train": "hf:org/rows", "lora.r": 32},
                **{"lora.targets": ["q_proj", "v_proj"], "training.batch_size": 8, "data.heldout_fraction": 0.1},
                **{"training.warmup_fraction": 0.1, "model.attn_implementation": "flash_attention_2"},
            },
        ),
        (
            DPO,
            "dpo",
            {
                **{"model.quantization": "int8", "lora.targets": "all-linear", "dpo.loss": "sigmoid", "dpo.beta": 0.1},
                **{"training.epochs": 4, "data.max_length_tokens": 4096, "model.gradient_checkpointing": True},
            },
        ),
    ],
)
def test_its_examples_become_recipes(tmp_path: Path, example: dict, stage: str, expected: dict) -> None:  # type: ignore[type-arg]
    done = moved(tmp_path, **example)
    assert done.configuration.stage == stage
    assert expected.items() <= values(done).items()
    assert not done.to_do
    out = tmp_path / "out.yaml"
    out.write_text(recipe_text(done, out))
    assert load_recipe(out, [], RECIPES[stage])
    used = {name for written in done.fields.values() for name in written.names}
    listed = {name for each in done.left for name in each.name.split(", ")}
    assert used | listed >= example.keys() - {"rl"}


@pytest.mark.parametrize("name", AXOLOTL.split())
def test_no_setting_is_lost(tmp_path: Path, name: str) -> None:
    if name == "rl":
        return
    done = moved(tmp_path, **{name: "a mark"})
    used = {each for written in done.fields.values() for each in written.names}
    assert name in used | {each for left in done.left for each in left.name.split(", ")}
    assert not [left for left in done.left if "does not know" in left.reason]


def test_what_an_entry_of_datasets_says_is_listed(tmp_path: Path) -> None:
    done = moved(tmp_path, datasets=[{"path": "a.jsonl", "type": "alpaca", "roles_to_train": []}])
    assert values(done)["data.train"] == "a.jsonl"
    assert {"datasets[0].type", "datasets[0].roles_to_train"} <= {left.name for left in done.left}


def test_group_rollouts_and_reward_functions(tmp_path: Path) -> None:
    section = {"num_generations": 4, "max_completion_length": 64, "beta": 0.01, "reward_funcs": ["rewards.short"]}
    done = moved(tmp_path, rl="grpo", trl=section | {"use_vllm": True}, micro_batch_size=8)
    expected = {
        **{"advantage": "grpo", "reward.name": "rewards:short", "training.batch_size": 2, "kl.coefficient": 0.01},
        **{"rollout.samples_per_prompt": 4, "rollout.max_new_tokens": 64},
    }
    assert expected.items() <= values(done).items()
    assert "use_vllm" in {left.name for left in done.left}


def test_without_an_adapter_all_weights_are_trained(tmp_path: Path) -> None:
    assert values(moved(tmp_path, lora_r=8))["lora"] is None


def test_a_method_without_a_counterpart_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="rl is 'gdpo', which prefine does not do"):
        moved(tmp_path, rl="gdpo")


def test_defaults_that_decide_the_result_are_written(tmp_path: Path) -> None:
    found = values(moved(tmp_path, base_model="org/m"))
    expected = {"training.seed": 42, "training.warmup_fraction": 0.03, "data.heldout_fraction": 0.0}
    assert expected.items() <= found.items()
    assert values(moved(tmp_path, base_model="org/m", warmup_ratio=0.1))["training.warmup_fraction"] == 0.1


def test_a_number_of_held_out_rows_is_to_do(tmp_path: Path) -> None:
    done = moved(tmp_path, base_model="org/m", val_set_size=200)
    assert any(sentence.startswith("Set data.heldout_fraction to 200 divided") for sentence in done.to_do)


def test_what_a_file_says_twice_is_listed(tmp_path: Path) -> None:
    done = moved(tmp_path, rl="grpo", beta=0.1, trl={"beta": 0.2}, eval_strategy="no", evaluation_strategy="steps")
    assert values(done)["kl.coefficient"] == 0.1
    assert values(done)["training.evaluate_every_steps"] is None
    assert {"trl.beta", "evaluation_strategy"} <= {left.name for left in done.left}
    assert "rl" in {left.name for left in moved(tmp_path, rl="dpo", reward_model=True).left}


def test_transformers_name_of_a_setting_comes_before_a_default(tmp_path: Path) -> None:
    assert values(moved(tmp_path, lr_scheduler_type="linear"))["training.schedule"] == "linear"


def test_weights_that_the_section_peft_quantises(tmp_path: Path) -> None:
    done = moved(tmp_path, adapter="lora", peft={"backend": "bnb", "weight_dtype": "nf4"})
    assert values(done)["model.quantization"] == "nf4"
    other = moved(tmp_path, adapter="lora", peft={"backend": "torchao", "weight_dtype": "int4"})
    assert "peft" in {left.name for left in other.left}
