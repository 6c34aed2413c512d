"""Configurations of TRL 1.16: every field of its classes is written or has a reason, and values keep their meaning."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from prefine.errors import RecipeError
from prefine.foreign_recipes.settings import Moved
from prefine.foreign_recipes.text import recipe_text
from prefine.foreign_recipes.trl import DEFAULTS, from_trl
from prefine.foreign_recipes.trl_script import PEFT_DEFAULTS
from prefine.foreign_recipes.trl_trainers import OWNERS
from prefine.recipe.loading import load_recipe, recipe_values
from prefine.recipe.registry import RECIPES

SCRIPT = """
import torch
from datasets import load_dataset
from trl import DPOConfig, DPOTrainer
MODEL = "org/small"
model = AutoModelForCausalLM.from_pretrained(MODEL, torch_dtype=torch.bfloat16)
rows = load_dataset("org/pairs", "en", split="train[:100]")
args = DPOConfig(output_dir="out", beta=0.3, learning_rate=2e-6, per_device_train_batch_size=4,
                 gradient_accumulation_steps=4, loss_type=["sigmoid", "sft"], loss_weights=[2.0, 0.5],
                 report_to=["wandb", "comet_ml"], run_mystery=1, fsdp=find())
trainer = DPOTrainer(model, args=args, train_dataset=rows, peft_config=LoraConfig(r=32, target_modules=["q_proj"]))
"""


@cache
def config_classes() -> dict[str, Any]:
    trl = pytest.importorskip("trl")
    orpo = pytest.importorskip("trl.experimental.orpo")
    cpo = pytest.importorskip("trl.experimental.cpo")
    names = ("SFT", "DPO", "Reward", "KTO", "GRPO", "RLOO")
    online = pytest.importorskip("trl.experimental.online_dpo")
    known = {name: getattr(trl, f"{name}Config") for name in names}
    return known | {"ORPO": orpo.ORPOConfig, "CPO": cpo.CPOConfig, "OnlineDPO": online.OnlineDPOConfig}


def moved(tmp_path: Path, text: str, name: str = "train.py", method: str | None = None) -> Moved:
    (tmp_path / name).write_text(text)
    return from_trl(tmp_path / name, method)


def left(done: Moved, name: str) -> str:
    """Why a setting has no counterpart."""
    (found,) = [each.reason for each in done.left if name in each.name.split(", ")]
    return found


def test_a_script_becomes_a_recipe(tmp_path: Path) -> None:
    done = moved(tmp_path, SCRIPT)
    values = {path: written.value for path, written in done.fields.items()}
    expected = {
        **{"run": "out", "model.name": "org/small", "data.train": "hf:org/pairs#en", "dpo.beta": 0.3},
        **{"training.batch_size": 16, "training.learning_rate": 2e-6, "training.trackers": ["wandb"], "lora.r": 32},
        **{"lora.targets": ["q_proj"], "dpo.loss": "sigmoid", "dpo.nll_weight": 0.25},
        # TRL's and peft's defaults.
        **{"training.epochs": 3.0, "training.schedule": "linear", "training.warmup_fraction": 0.0, "lora.alpha": 8},
        **{"data.max_length_tokens": 1024, "training.seed": 42},
    }
    assert expected.items() <= values.items()
    assert left(done, "run_mystery") == "prefine does not know this setting"
    assert "only when the file runs" in left(done, "fsdp")
    assert "comet_ml" in left(done, "report_to")
    assert "data.limit" in left(done, "train_dataset.split")
    assert values["model.dtype"] == "bfloat16"


def test_the_text_is_a_recipe_with_the_same_values(tmp_path: Path) -> None:
    done = moved(tmp_path, SCRIPT)
    out = tmp_path / "dpo.yaml"
    out.write_text(recipe_text(done, out))
    assert recipe_values(out) == json.loads(json.dumps(done.values))
    assert load_recipe(out, [], RECIPES["dpo"])
    text = out.read_text()
    assert text.startswith("# prefine dpo ")
    assert "# - run_mystery: 1: prefine does not know this setting." in text


def test_line_breaks_in_a_value_stay_inside_the_comment(tmp_path: Path) -> None:
    done = moved(tmp_path, "DPOConfig(mystery='a\\nrun: elsewhere\\x1b[31m')\n")
    text = recipe_text(done, Path("dpo.yaml"))
    assert not any(line.startswith("run:") for line in text.splitlines())
    assert "\x1b" not in text


@pytest.mark.parametrize("trainer", DEFAULTS)
def test_defaults_are_those_of_trl(trainer: str) -> None:
    if trainer not in config_classes():
        pytest.skip("not in this release of TRL")
    fields = {field.name: field.default for field in dataclasses.fields(config_classes()[trainer])}
    fields |= {
        field.name: field.default_factory()
        for field in dataclasses.fields(config_classes()[trainer])
        if field.default_factory is not dataclasses.MISSING
    }
    assert {name: fields[name] for name in DEFAULTS[trainer]} == DEFAULTS[trainer]


@pytest.mark.parametrize("trainer", DEFAULTS)
def test_defaults_that_decide_the_result_are_written(trainer: str, tmp_path: Path) -> None:
    """Whatever the trainer: rate, seed, length, the strength of the pull, warm-up, and what is held out."""
    done = moved(tmp_path, f"{trainer}Config()\n")
    stage = done.configuration.stage
    pull = {"sft": [], "reward": [], "ppo": ["kl.coefficient", "ppo.epochs", "ppo.clip"]}.get(stage, [f"{stage}.beta"])
    own = ["ppo.lam"] if trainer == "PPO" else []
    if trainer == "OnlineDPO":  # it learns from pairs, without ratios
        pull = ["kl.coefficient", "ppo.epochs"]
    shared = ["learning_rate", "seed", "epochs", "batch_size", "schedule", "warmup_fraction"]
    needed = [*(f"training.{name}" for name in shared), "data.max_length_tokens", "data.heldout_fraction", *pull, *own]
    assert not [name for name in needed if name not in done.fields]


def test_defaults_of_ppo(tmp_path: Path) -> None:
    """TRL 1.10 is not installed; its PPOConfig was read."""
    values = {path: written.value for path, written in moved(tmp_path, "PPOConfig()\n").fields.items()}
    expected = {
        **{"training.learning_rate": 3e-6, "kl.coefficient": 0.05, "ppo.clip": 0.2, "ppo.lam": 0.95, "ppo.epochs": 4},
        **{"rollout.max_new_tokens": 53, "data.max_length_tokens": 565, "ppo.minibatches": 1, "ppo.gamma": 1.0},
    }
    assert expected.items() <= values.items()


@pytest.mark.parametrize(
    ("text", "share", "comment"),
    [
        ("DPOConfig()", 0.0, "all rows are trained on"),
        ("DPOConfig(load_best_model_at_end=True)", 0.1, "training.keep_best needs some"),
    ],
)
def test_without_rows_to_evaluate_on_none_are_held_out(tmp_path: Path, text: str, share: float, comment: str) -> None:
    done = moved(tmp_path, text + "\n")
    assert done.fields["data.heldout_fraction"].value == share
    assert comment in done.fields["data.heldout_fraction"].origin
    out = tmp_path / "dpo.yaml"
    out.write_text(recipe_text(done, out))
    assert load_recipe(out, [], RECIPES["dpo"])


def test_rows_to_evaluate_on_leave_the_share_alone(tmp_path: Path) -> None:
    done = moved(tmp_path, "DPOTrainer(args=DPOConfig(), eval_dataset=load_dataset('org/d', split='test'))\n")
    assert done.fields["data.heldout"].value == "hf:org/d"
    assert "data.heldout_fraction" not in done.fields


@pytest.mark.parametrize("accumulated", ["0", "'a'", "None", "True", "-1"])
@pytest.mark.parametrize("steps", ["3", "0", "True", "'a'", "2.5"])
def test_numbers_of_steps_that_are_no_counts_are_listed(tmp_path: Path, steps: str, accumulated: str) -> None:
    text = f"GRPOConfig(steps_per_generation={steps}, gradient_accumulation_steps={accumulated}, num_generations=0)\n"
    assert left(moved(tmp_path, text), "steps_per_generation")


def test_defaults_of_an_adapter_are_those_of_peft() -> None:
    peft = pytest.importorskip("peft")
    fields = {field.name: field.default for field in dataclasses.fields(peft.LoraConfig)}
    assert {name: fields[name] for name in PEFT_DEFAULTS} == PEFT_DEFAULTS


@pytest.mark.parametrize("trainer", ["SFT", "DPO", "Reward", "KTO", "ORPO", "GRPO", "RLOO", "OnlineDPO"])
def test_every_field_of_the_class_is_written_or_has_a_reason(trainer: str, tmp_path: Path) -> None:
    """Each with a value of its own that is not the default, so that none can hide behind another."""
    names = [field.name for field in dataclasses.fields(config_classes()[trainer])]
    stage = {"GRPO": "ppo", "RLOO": "ppo", "OnlineDPO": "ppo"}.get(trainer, trainer.lower())
    if stage not in RECIPES:
        pytest.skip(f"no method {stage}")
    for name in names:
        done = moved(tmp_path, f"{trainer}Config({name}='a mark')\n")
        origins = " ".join(written.origin for written in done.fields.values())
        told = {part for each in done.left for part in each.name.split(", ")}
        assert f"{name}: a mark" in origins or name in told, name
        assert "does not know" not in " ".join(each.reason for each in done.left), name


def test_smoothing_is_written_only_where_trl_smooths(tmp_path: Path) -> None:
    """In TRL 1.16 DPO's robust loss, but CPO's sigmoid."""
    done = moved(tmp_path, "DPOConfig(loss_type=['sigmoid', 'hinge'], label_smoothing=0.1)\n")
    assert left(done, "label_smoothing") == "as here, it has no effect on sigmoid and hinge"
    assert done.fields["dpo.loss"].value == {"sigmoid": 1.0, "hinge": 1.0}
    assert "dpo.label_smoothing" not in done.fields
    cpo = moved(tmp_path, "CPOConfig(label_smoothing=0.1)\n")
    assert (cpo.fields["dpo.loss"].value, cpo.fields["dpo.label_smoothing"].value) == ("conservative", 0.1)


def test_online_dpo(tmp_path: Path) -> None:
    """A batch counts prompts there, too; the penalty of TRL's default is none, prefine's is 1."""
    script = (
        "args = OnlineDPOConfig(per_device_train_batch_size=4, beta=[0.3]{})\n"
        "OnlineDPOTrainer(model='org/m', reward_funcs='org/rm', args=args, train_dataset=load_dataset('org/d'){})\n"
    )
    done = moved(tmp_path, script.format("", ""))
    expected = {
        **{"advantage": "online_dpo", "kl.coefficient": 0.3, "training.batch_size": 4, "ppo.epochs": 1},
        **{"ppo.minibatches": 1, "rollout.max_new_tokens": 64, "rollout.temperature": 0.9, "reward.name": "org/rm"},
        **{"reward.missing_eos": "none", "reward.clip": None, "data.max_length_tokens": 512},
    }
    assert expected.items() <= {path: written.value for path, written in done.fields.items()}.items()
    assert not done.to_do
    assert RECIPES["ppo"].model_validate(done.values)
    other = moved(tmp_path, script.format(", missing_eos_penalty=0.5, loss_type='ipo'", ", judge='pair'"))
    fields = {path: written.value for path, written in other.fields.items()}
    assert (fields["reward.missing_eos"], fields["reward.missing_eos_value"]) == ("penalty", 0.5)
    assert left(other, "loss_type") == "online DPO has the sigmoid loss only"
    assert "compare two answers" in left(other, "judge")
    assert len(other.to_do) == 2
    assert any("kl.coefficient" in line for line in moved(tmp_path, "OnlineDPOConfig(beta=[0.1, 0.2])\n").to_do)


def test_weights_that_do_not_fit_are_a_thing_to_do(tmp_path: Path) -> None:
    done = moved(tmp_path, "DPOConfig(loss_type=['sigmoid', 'hinge', 'sft'], loss_weights=[1.0, 0.5])\n")
    assert "dpo.loss" not in done.fields
    assert any("Set dpo.loss: there are 3 losses" in line for line in done.to_do)
    assert left(done, "loss_weights") == left(done, "loss_type")


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        ("warmup_steps=0.05", "training.warmup_fraction", 0.05),
        ("warmup_steps=10, max_steps=200", "training.warmup_fraction", 0.05),
        ("lr_scheduler_type='constant_with_warmup', warmup_ratio=0.1", "training.warmup_fraction", 0.1),
        ("max_steps=200, eval_strategy='steps', eval_steps=0.1", "training.evaluate_every_steps", 20),
        ("eval_strategy='no'", "training.evaluate_every_steps", None),
        ("save_strategy='no'", "training.save_every_steps", None),
        ("adam_beta2=0.95", "training.adam_betas", [0.9, 0.95]),
        ("bf16=True", "model.dtype", "bfloat16"),
        ("use_cpu=True", "model.device", "cpu"),
        ("loss_type='sigmoid_norm'", "dpo.length_normalized", True),
        ("loss_type='sigmoid', label_smoothing=0.1", "dpo.loss", "sigmoid"),
        (
            "loss_type=['sigmoid', 'hinge', 'sigmoid'], loss_weights=[1, 0.5, 2]",
            "dpo.loss",
            {"sigmoid": 3, "hinge": 0.5},
        ),
        ("loss_type=['robust', 'hinge'], label_smoothing=0.1", "dpo.label_smoothing", 0.1),
        ("loss_type='robust', label_smoothing=0.1", "dpo.label_smoothing", 0.1),
        ("loss_type=['ipo']", "dpo.loss", "ipo"),
        ("report_to='none'", "training.trackers", []),
        ("load_best_model_at_end=True", "training.keep_best", True),
        ("model_init_kwargs={'attn_implementation': 'sdpa'}", "model.attn_implementation", "sdpa"),
    ],
)
def test_values_of_another_form_keep_their_meaning(tmp_path: Path, arguments: str, field: str, value: Any) -> None:
    done = moved(tmp_path, f"DPOConfig({arguments})\n")
    assert done.fields[field].value == value


@pytest.mark.parametrize(
    ("arguments", "name", "reason"),
    [
        ("warmup_steps=10", "warmup_steps", "set it to 10 divided by their number"),
        ("eval_strategy='epoch'", "eval_strategy", "counts steps"),
        ("fp16=True", "fp16", "does not train in float16"),
        ("loss_type='apo_zero'", "loss_type", "but must be"),
        ("optim='adafactor'", "optim", "the optimiser is AdamW"),
        ("max_length=None", "max_length", "1024 by default"),
        ("learning_rate=0", "learning_rate", "must be greater than 0"),
        ("max_steps=-1", "max_steps", "training.epochs decides"),
        ("push_to_hub=True", "push_to_hub", "uploads nothing"),
    ],
)
def test_what_has_no_counterpart_says_why(tmp_path: Path, arguments: str, name: str, reason: str) -> None:
    assert reason in left(moved(tmp_path, f"DPOConfig({arguments})\n"), name)


def test_grpo_counts_answers_and_prefine_prompts(tmp_path: Path) -> None:
    text = (
        "args = GRPOConfig(num_generations=4, per_device_train_batch_size=8, gradient_accumulation_steps=2,beta=0.04)\n"
        "GRPOTrainer(model='org/m', reward_funcs=[mine, 'org/rm'], args=args, train_dataset=load_dataset('org/d'))\n"
    )
    done = moved(tmp_path, text)
    values = {path: written.value for path, written in done.fields.items()}
    expected = {
        **{"advantage": "grpo", "training.batch_size": 4, "rollout.samples_per_prompt": 4, "kl.coefficient": 0.04},
        **{"rollout.max_new_tokens": 512, "data.max_length_tokens": 1024, "lora": None},
        **{"ppo.advantage_std": "group", "ppo.loss_average": "tokens", "ppo.minibatches": 1, "ppo.epochs": 1},
        **{"reward.name": "my_rewards:reward", "reward.more": [{"name": "org/rm"}]},
    }
    assert expected.items() <= values.items()
    assert any("function(rows)" in sentence for sentence in done.to_do)
    out = tmp_path / "ppo.yaml"
    out.write_text(recipe_text(done, out))
    assert load_recipe(out, [], RECIPES["ppo"])


def test_several_steps_for_an_update(tmp_path: Path) -> None:
    """16 answers a step, 2 steps an update, 4 answers to a prompt."""
    rows = "per_device_train_batch_size=8, gradient_accumulation_steps=2, steps_per_generation=4, num_generations=4"
    done = moved(tmp_path, f"GRPOConfig({rows})\n")
    assert done.fields["ppo.minibatches"].value == 2
    assert done.fields["training.batch_size"].value == 8


def test_without_data_or_model_the_recipe_names_files_that_are_not_there(tmp_path: Path) -> None:
    """Its defaults would train prefine's own model on its own sample."""
    done = moved(tmp_path, "SFTConfig()\n")
    assert done.fields["data.train"].value == "./data.jsonl"
    assert done.fields["model.name"].value == "./model"
    assert len(done.to_do) == 2


def test_quantisation_of_a_script(tmp_path: Path) -> None:
    text = (
        "bnb = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4')\n"
        "m = AutoModelForCausalLM.from_pretrained('org/m', quantization_config=bnb)\n"
        "SFTTrainer(model=m, args=SFTConfig(), peft_config=LoraConfig())\n"
    )
    done = moved(tmp_path, text)
    assert done.fields["model.quantization"].value == "nf4"
    assert done.fields["model.name"].value == "org/m"


def test_the_yaml_of_its_command_line(tmp_path: Path) -> None:
    text = (
        "model_name_or_path: org/m\ndataset_name: org/d\nuse_peft: true\nlora_r: 4\nnum_train_epochs: 2\n"
        "load_in_4bit: true\ncompletion_only_loss: true\nwandb_x:\n"
    )
    done = moved(tmp_path, text, "sft.yaml")
    values = {path: written.value for path, written in done.fields.items()}
    expected = {"data.train": "hf:org/d", "lora.r": 4, "lora.dropout": 0.05, "training.epochs": 2}
    assert (expected | {"model.quantization": "nf4"}).items() <= values.items()
    assert done.configuration.stage == "sft"
    assert left(done, "wandb_x") == "they set nothing"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "learning_rate: 1\n", "does not say which trainer it is for"),
        ("a.py", "x = 1\n", "has no call of any of its configurations"),
        ("a.py", "SFTConfig()\nDPOConfig()\n", "has several configurations: SFTConfig in line 1, DPOConfig in line 2"),
        ("a.yaml", "- 1\n", "holds a list, not fields"),
        ("a.yaml", "num_generations: 4\n", "Say which: --method grpo, rloo"),
        ("a.yaml", "precompute_ref_log_probs: true\n", "Say which: --method dpo, kto"),
        ("a.yaml", "cpo_alpha: 1\nnum_ppo_epochs: 1\n", "no trainer has together: cpo_alpha, num_ppo_epochs"),
    ],
)
def test_refusals(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        moved(tmp_path, text, name)


def test_a_method_chooses_among_several(tmp_path: Path) -> None:
    assert moved(tmp_path, "SFTConfig()\nDPOConfig()\n", method="dpo").configuration.stage == "dpo"
    assert moved(tmp_path, "learning_rate: 1\n", "a.yaml", "reward").configuration.stage == "reward"
    assert moved(tmp_path, "GRPOConfig()\nRLOOConfig()\n", method="rloo").fields["advantage"].value == "rloo"


@pytest.mark.parametrize(
    ("text", "method", "advantage"),
    [
        ("num_generations: 4\n", "rloo", "rloo"),
        ("num_generations: 4\n", "grpo", "grpo"),
        ("num_generations: 4\nreward_clip_range: [-1, 1]\n", None, "rloo"),
        ("num_generations: 4\nscale_rewards: none\n", None, "grpo"),
        ("scale_rewards: none\n", "ppo", "grpo"),
    ],
)
def test_grpo_and_rloo_are_told_apart(tmp_path: Path, text: str, method: str | None, advantage: str) -> None:
    assert moved(tmp_path, text, "a.yaml", method).fields["advantage"].value == advantage


@pytest.mark.parametrize("method", ["ppo", "sft", "kio"])
def test_a_method_that_leaves_several_trainers_or_none_is_refused(tmp_path: Path, method: str) -> None:
    with pytest.raises(RecipeError, match="Say which: --method grpo, rloo"):
        moved(tmp_path, "num_generations: 4\n", "a.yaml", method)


def test_settings_that_tell_trainers_apart_are_those_of_trl() -> None:
    classes = config_classes()
    fields = {trainer: {field.name for field in dataclasses.fields(each)} for trainer, each in classes.items()}
    for name, owners in OWNERS.items():
        having = {trainer for trainer in classes if name in fields[trainer]}
        assert having == set(owners) & set(classes), name


@pytest.mark.parametrize("trainer", DEFAULTS)
@pytest.mark.parametrize("value", ["True", "-1", "0", "[]", "{'a': 1}", "1e300", "[1, 'a']", "2.5"])
def test_a_value_of_any_type_is_written_or_listed(tmp_path: Path, trainer: str, value: str) -> None:
    names = [*DEFAULTS[trainer], "max_steps", "eval_steps", "steps_per_generation", "loss_weights", "reward_weights"]
    for name in dict.fromkeys(names):
        done = moved(
            tmp_path,
            f"{trainer}Config({name}={value}, num_generations=4)\n"
            if name != "num_generations"
            else f"{trainer}Config({name}={value})\n",
        )
        assert recipe_text(done, Path("a.yaml"))
