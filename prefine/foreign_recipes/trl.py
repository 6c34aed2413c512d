"""Configurations of TRL: a training script, or the YAML file of its command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefine.errors import RecipeError
from prefine.foreign_recipes import rules
from prefine.foreign_recipes.mover import Mover
from prefine.foreign_recipes.objectives import (
    answer_lengths,
    group_rollouts,
    preference_loss,
    reward_sources,
    rollout_pairs,
    strength,
)
from prefine.foreign_recipes.settings import Configuration, Moved, Setting, Written
from prefine.foreign_recipes.sources import training_data
from prefine.foreign_recipes.trl_script import LORA_DEFAULTS, PEFT_PREFIX, read_script
from prefine.foreign_recipes.trl_trainers import TRAINERS, trainer_of
from prefine.recipe.loading import recipe_values
from prefine.recipe.registry import RECIPES

# TRL 1.16's defaults of what decides the result; `tests/foreign_recipes/test_trl.py` compares them with its classes.
_SHARED = {
    "num_train_epochs": 3.0,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "seed": 42,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "SFT": {**_SHARED, "learning_rate": 2e-5, "max_length": 1024},
    "DPO": {**_SHARED, "learning_rate": 1e-6, "max_length": 1024, "beta": 0.1, "loss_type": ["sigmoid"]},
    "Reward": {**_SHARED, "learning_rate": 1e-4, "max_length": 1024, "center_rewards_coefficient": None},
    "KTO": {**_SHARED, "learning_rate": 1e-6, "max_length": 1024, "beta": 0.1, "loss_type": "kto"},
    "ORPO": {**_SHARED, "learning_rate": 1e-6, "max_length": 1024, "beta": 0.1},
    "CPO": {
        **_SHARED,
        **{"learning_rate": 1e-6, "max_length": 1024, "beta": 0.1, "loss_type": "sigmoid"},
        **{"cpo_alpha": 1.0, "simpo_gamma": 0.5},
    },
    "GRPO": {
        **_SHARED,
        **{"learning_rate": 1e-6, "beta": 0.0, "num_generations": 8, "max_completion_length": 512},
        **{"num_iterations": 1, "epsilon": 0.2, "temperature": 1.0, "scale_rewards": "group", "loss_type": "dapo"},
    },
    "RLOO": {
        **_SHARED,
        **{"learning_rate": 1e-6, "beta": 0.05, "num_generations": 2, "max_completion_length": 512},
        **{"num_iterations": 1, "epsilon": 0.2, "temperature": 1.0},
    },
    "PPO": {  # TRL 1.10's, which was the last one with this trainer that was looked at
        **_SHARED,
        **{"learning_rate": 3e-6, "kl_coef": 0.05, "cliprange": 0.2, "cliprange_value": 0.2, "vf_coef": 0.1},
        **{"gamma": 1.0, "lam": 0.95, "num_ppo_epochs": 4, "num_mini_batches": 1},
        **{"response_length": 53, "temperature": 0.7},
    },
    "OnlineDPO": {
        **_SHARED,
        **{"learning_rate": 5e-7, "beta": [0.1], "max_length": 512, "max_new_tokens": 64, "temperature": 0.9},
        **{"missing_eos_penalty": None, "loss_type": "sigmoid"},
    },
}


def from_trl(path: Path, method: str | None = None) -> Moved:
    """A configuration of TRL in prefine's terms.

    Args:
        path: a script (.py), which is not executed, or a YAML file.
        method: the stage of prefine, or the trainer, that is meant, where a file has several or does not say.

    Raises:
        RecipeError: the file cannot be read, or has no configuration of that method, or several.
    """
    read = _from_script if path.suffix.lower() == ".py" else _from_yaml
    trainer, configuration = read(path, method)
    return _moved(trainer, configuration)


def _configuration(
    trainer: str, path: Path, settings: dict[str, Setting], unread: list[tuple[str, str]]
) -> Configuration:
    stage = TRAINERS[trainer][0]
    if stage not in RECIPES:
        raise RecipeError(f"{path}: prefine has no method {stage}", f"Its methods are {', '.join(RECIPES)}.")
    for name, value in DEFAULTS[trainer].items():
        settings.setdefault(name, Setting(name, value, default=True))
    return Configuration("TRL", str(path), stage, settings, tuple(unread))


def _from_yaml(path: Path, method: str | None) -> tuple[str, Configuration]:
    settings = {name: Setting(name, value) for name, value in map(_plain, recipe_values(path).items())}
    trainer = trainer_of(path, settings, method)
    uses_peft = any(name.startswith("lora_") for name in settings) or bool(settings.get("use_peft"))
    if uses_peft:
        for name, value in LORA_DEFAULTS.items():
            settings.setdefault(name, Setting(name, value, default=True))
    return trainer, _configuration(trainer, path, settings, [])


def _plain(item: tuple[Any, Any]) -> tuple[str, Any]:
    return str(item[0]).replace("-", "_"), item[1]


def _from_script(path: Path, method: str | None) -> tuple[str, Configuration]:
    trainer, settings, unread = read_script(path, method)
    return trainer, _configuration(trainer, path, settings, unread)


def _moved(trainer: str, configuration: Configuration) -> Moved:
    mover = Mover(configuration)
    _model(mover)
    strategy = str(mover.value("eval_strategy")).lower()
    in_script = configuration.source.lower().endswith(".py")  # which says itself what is evaluated on
    training_data(mover, evaluated=not in_script and strategy not in ("no", "none", "false"))
    _adapter(mover)
    rules.quantisation(mover)
    rules.common_rules(mover)
    advantage = TRAINERS[trainer][1]
    if advantage in ("grpo", "rloo"):
        group_rollouts(mover, advantage)
    elif advantage == "online_dpo":
        rollout_pairs(mover)
    elif advantage:
        answer_lengths(mover, mover.take("response_length"), None)
    if (sources := mover.take("reward_funcs")) is not None:
        _sources_of_rewards(mover, sources)
    strength(mover, "beta")
    if "dpo.loss" in mover.paths:
        _loss(mover, trainer)
    if (centring := mover.take("center_rewards_coefficient")) is not None:
        mover.write("reward.centring_weight", centring.value or 0.0, centring)
    rules.held_out(mover, "test_split_size")
    rules.same_as_here(mover, _AS_HERE)
    return mover.finish()


_AS_HERE = {
    "loss_type": ("kto", "the loss is that of KTO"),
    "disable_dropout": (True, "models are trained without dropout but that of adapters"),
    "push_to_hub": (False, "nothing is uploaded"),
    "use_liger_kernel": (True, "full logits are never held"),
}


def _model(mover: Mover) -> None:
    name = mover.take("model_name_or_path")
    if name is not None and name.value:
        mover.write("model.name", name.value, name)
    else:
        mover.moved.fields["model.name"] = Written("./model", "to do: name the model")
        mover.todo("Set model.name: the file does not say it, or not as text.")
    revision = mover.take("model_revision")
    if revision is not None:
        if revision.value == "main":
            mover.leave(revision, "as here, the main branch is the default")
        else:
            mover.write("model.revision", revision.value, revision)


def _adapter(mover: Mover) -> None:
    """An adapter by a LoraConfig of the script or by settings of ModelConfig; neither trains all weights."""
    names = mover.moved.configuration.settings
    in_script = [name for name in names if name.startswith(PEFT_PREFIX)]
    uses, other = mover.take("use_peft"), mover.take("peft_config")
    if other is not None and other.value is not None:
        mover.leave(other, "prefine trains LoRA adapters, which a LoraConfig or ModelConfig with literal values says")
    for name in in_script:
        _of_lora_config(mover, name)
    if in_script:
        _targets(mover, f"{PEFT_PREFIX}target_modules")
        if uses is not None:
            mover.leave(uses, "the LoraConfig says it")
        return
    on = uses is not None and uses.value is True
    if on and uses is not None:
        mover.leave(uses, "as here, an adapter is trained: section lora")
        _targets(mover, "lora_target_modules")
        return
    for name in [name for name in names if name.startswith("lora_")]:
        if (setting := mover.take(name)) is not None and not setting.default:
            mover.leave(setting, "use_peft is not true, so that it has no effect there either")
    if other is not None and other.value is not None:
        mover.todo(
            "Set the section lora: the file has an adapter that is not read, and prefine's default one is trained."
        )
        return
    rules.full_training(mover, "no adapter is configured, so all weights are trained", *([uses] if uses else []))


def _targets(mover: Mover, name: str) -> None:
    """The modules with adapters: all linear ones where none are named, as prefine does not go by the model's type."""
    given = mover.moved.configuration.settings.get(name)
    if given is not None and (given.value is not None or given.expression is not None):
        rules.lora_targets(mover, name)
        return
    setting = mover.take(name)
    note = "none are named; peft would choose by the model's type"
    mover.write("lora.targets", "all-linear", *([setting] if setting is not None else []), note=note)


def _of_lora_config(mover: Mover, name: str) -> None:
    plain = name.removeprefix(PEFT_PREFIX)
    if plain == "target_modules":
        return  # see _targets
    if plain == "init_lora_weights":
        rules.adapter_start(mover, name)
        return
    setting = mover.take(name)
    if setting is None:
        return
    path = {"r": "lora.r", "lora_alpha": "lora.alpha", "lora_dropout": "lora.dropout"}.get(plain)
    shown = Setting(plain, setting.value, default=setting.default)
    if path is not None:
        mover.write(path, setting.value, shown)
    elif plain in ("task_type", "bias", "inference_mode") and setting.value in ("CAUSAL_LM", "SEQ_CLS", "none", False):
        mover.leave(shown, "as here: the method decides it" if plain == "task_type" else "as here")
    else:
        mover.by_name(shown)


def _loss(mover: Mover, trainer: str) -> None:
    losses, weights = mover.take("loss_type"), mover.take("loss_weights")
    smoothed = frozenset({"sigmoid"} if trainer == "CPO" else {"robust"})
    preference_loss(mover, losses, weights, mover.take("label_smoothing"), smoothed)
    if trainer != "CPO":
        return
    likelihood, margin = mover.take("cpo_alpha"), mover.take("simpo_gamma")
    simpo = losses is not None and losses.value == "simpo"
    if likelihood is not None:
        mover.write("dpo.nll_weight", likelihood.value, likelihood)
    if margin is not None:
        if simpo:
            mover.write("dpo.simpo_margin", margin.value, margin)
        else:
            mover.leave(margin, "the loss is not simpo")
    if not simpo:
        mover.todo("CPO has no reference model; prefine's dpo has one for every loss but simpo. Check dpo.loss.")


def _sources_of_rewards(mover: Mover, setting: Setting) -> None:
    named = setting.value if isinstance(setting.value, list) else [setting.value]
    reward_sources(mover, [each if isinstance(each, str) else None for each in named], mover.take("reward_weights"))
