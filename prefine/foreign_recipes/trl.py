"""Configurations of TRL: a training script, or the YAML file of its command line."""

from __future__ import annotations

import ast
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
from prefine.foreign_recipes.python_file import QUANTISATION, Script, ScriptCall
from prefine.foreign_recipes.settings import Configuration, Moved, Setting, Written
from prefine.foreign_recipes.sources import training_data
from prefine.foreign_recipes.trl_trainers import TRAINERS, named_by, trainer_of
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
_LORA_DEFAULTS = {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05}  # of TRL's ModelConfig
PEFT_DEFAULTS = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0}  # of peft's LoraConfig
_PEFT_PREFIX = "lora."
_OF_SCRIPTS = ("ModelConfig", "ScriptArguments", "DatasetMixtureConfig")


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
        for name, value in _LORA_DEFAULTS.items():
            settings.setdefault(name, Setting(name, value, default=True))
    return trainer, _configuration(trainer, path, settings, [])


def _plain(item: tuple[Any, Any]) -> tuple[str, Any]:
    return str(item[0]).replace("-", "_"), item[1]


def _from_script(path: Path, method: str | None) -> tuple[str, Configuration]:
    script = Script(path)
    trainer, call = _one_configuration(path, script, method)
    settings, unread = dict(call.settings), list(call.unread)
    if arguments := settings.pop("model_init_kwargs", None):
        settings.update(_flattened(arguments))
    for other in script.calls(*_OF_SCRIPTS, QUANTISATION):
        settings.update(other.settings)
        unread += other.unread
    adapters = script.calls("LoraConfig")
    for adapter in adapters[:1]:
        values = {name: Setting(name, value, default=True) for name, value in PEFT_DEFAULTS.items()} | adapter.settings
        settings.update({_PEFT_PREFIX + name: setting for name, setting in values.items()})
        unread += adapter.unread
    for adapter in adapters[1:]:
        unread.append((f"LoraConfig, line {adapter.line}", "the file has several; the first is read"))
    _of_trainer(script, trainer, settings, unread)
    return trainer, _configuration(trainer, path, settings, unread)


def _flattened(arguments: Setting) -> dict[str, Setting]:
    if not isinstance(arguments.value, dict):
        return {arguments.name: arguments}
    return {name: Setting(name, value) for name, value in arguments.value.items()}


def _one_configuration(path: Path, script: Script, method: str | None) -> tuple[str, ScriptCall]:
    """The trainer and its configuration. Raises RecipeError where there is none, or more than one."""
    known = {f"{name}Config": name for name in TRAINERS}
    calls = script.calls(*known)
    if method is not None:
        meant = named_by(method, [known[call.name] for call in calls])
        calls = [call for call in calls if known[call.name] in meant]
    if not calls:
        what = f"a configuration for {method}" if method else "any of its configurations"
        raise RecipeError(f"{path} has no call of {what}", f"prefine reads {', '.join(known)}.")
    if len(calls) > 1:
        places = ", ".join(f"{call.name} in line {call.line}" for call in calls)
        raise RecipeError(
            f"{path} has several configurations: {places}", "Choose one with --method, or split the file."
        )
    return known[calls[0].name], calls[0]


def _of_trainer(script: Script, trainer: str, settings: dict[str, Setting], unread: list[tuple[str, str]]) -> None:
    """Add what the script gives to the trainer itself: model, data, rewards."""
    trainers = script.calls(f"{trainer}Trainer")
    unread += [(f"{call.name}, line {call.line}", "the file has several; the first is read") for call in trainers[1:]]
    for call in trainers[:1]:
        expressions = dict([("model", part) for part in call.positional[:1]] + [*call.expressions.items()])
        unread += call.unread[len(call.positional[:1]) :]  # the first argument is the model
        for name, expression in expressions.items():
            if name in ("args", "peft_config", "processing_class", "tokenizer"):
                continue
            if name in ("train_dataset", "eval_dataset"):
                source, changes = script.dataset(expression)
                unread += changes
                settings[name] = Setting(name, source) if source else call.settings[name]
            elif name == "reward_funcs":
                settings[name] = Setting(name, _rewards(script, expression))
            elif name == "model":
                loaded, options = script.loaded_model(expression)
                if loaded is not None:
                    settings["model_name_or_path"] = Setting("model", loaded)
                for option, value in options.items():
                    settings.setdefault(option, value)
            else:
                settings.setdefault(name, call.settings[name])
    if "model_name_or_path" not in settings and (models := script.loaded_models()):
        settings["model_name_or_path"] = Setting("from_pretrained", models[0])
    if "train_dataset" not in settings and "dataset_name" not in settings and (loaded_rows := script.loaded_datasets()):
        settings["train_dataset"] = Setting("load_dataset", loaded_rows[0])


def _rewards(script: Script, expression: ast.expr) -> list[str | None]:
    """Names of reward models; None for a function of the script."""
    parts = expression.elts if isinstance(expression, ast.List | ast.Tuple) else [expression]
    return [script.loaded_name(part) for part in parts]


def _moved(trainer: str, configuration: Configuration) -> Moved:
    mover = Mover(configuration)
    _model(mover)
    training_data(mover)
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
    rules.held_out(mover)
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
    in_script = [name for name in names if name.startswith(_PEFT_PREFIX)]
    uses = mover.take("use_peft")
    for name in in_script:
        _of_lora_config(mover, name)
    if in_script:
        if uses is not None:
            mover.leave(uses, "the LoraConfig says it")
        return
    on = uses is not None and uses.value is True
    if on and uses is not None:
        mover.leave(uses, "as here, an adapter is trained: section lora")
        rules.lora_targets(mover, "lora_target_modules")
        if "lora.targets" not in mover.moved.fields:
            mover.write("lora.targets", "all-linear", note=_TARGETS)
        return
    for name in [name for name in names if name.startswith("lora_")]:
        if (setting := mover.take(name)) is not None and not setting.default:
            mover.leave(setting, "use_peft is not true, so that it has no effect there either")
    rules.full_training(mover, "no adapter is configured, so all weights are trained", *([uses] if uses else []))


_TARGETS = "none are named; peft would choose by the model's type"


def _of_lora_config(mover: Mover, name: str) -> None:
    plain = name.removeprefix(_PEFT_PREFIX)
    if plain == "target_modules":
        rules.lora_targets(mover, name)
        return
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
