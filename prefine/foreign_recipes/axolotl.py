"""Configurations of axolotl: the YAML file of `axolotl train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefine.errors import RecipeError
from prefine.foreign_recipes import rules
from prefine.foreign_recipes.mover import Mover
from prefine.foreign_recipes.objectives import group_rollouts, reward_sources, strength
from prefine.foreign_recipes.settings import Configuration, Moved, Setting
from prefine.foreign_recipes.sources import data_of, missing_data, write_sources
from prefine.recipe.loading import recipe_values
from prefine.recipe.registry import RECIPES

_STAGES = {"dpo": "dpo", "ipo": "dpo", "simpo": "dpo", "orpo": "orpo", "kto": "kto", "grpo": "ppo"}
# Its names -> transformers', which the shared rules know.
_RENAMED = {
    "micro_batch_size": "per_device_train_batch_size",
    "lr_scheduler": "lr_scheduler_type",
    "optimizer": "optim",
    "evaluation_strategy": "eval_strategy",
}
# Its defaults of what decides the result (utils/schemas/*.py).
DEFAULTS: dict[str, Any] = {
    **{"num_epochs": 1.0, "micro_batch_size": 1, "gradient_accumulation_steps": 1, "lr_scheduler": "cosine"},
    **{"sequence_len": 512, "seed": 42},
}
# Its warm-up where the file has none: so much of all steps, and at most 100 of them (core/builders/base.py).
_WARMUP = 0.03
_BETA = 0.1
_ATTENTION = {"flash_attention": "flash_attention_2", "sdp_attention": "sdpa", "eager_attention": "eager"}


def from_axolotl(path: Path, method: str | None = None) -> Moved:
    """A configuration of axolotl in prefine's terms.

    Args:
        path: a YAML file.
        method: refused if it is not the one that the file says.

    Raises:
        RecipeError: the file cannot be read, or its method has no counterpart.
    """
    given = {str(name): value for name, value in recipe_values(path).items()}
    stage, rl = _stage(path, given)
    if method not in (None, stage):
        raise RecipeError(f"{path} is a configuration for {stage}, not for {method}", "Leave --method out.")
    settings = {name: Setting(name, value) for name, value in given.items()}
    for name, value in DEFAULTS.items():
        settings.setdefault(name, Setting(name, value, default=True))
    if not any(settings[name].value is not None for name in ("warmup_ratio", "warmup_steps") if name in settings):
        settings["warmup_ratio"] = Setting("warmup_ratio", _WARMUP, default=True)
    unread = _trl_section(settings)
    renamed: dict[str, Setting] = {}
    for setting in settings.values():
        name = _RENAMED.get(setting.name, setting.name)
        if name not in renamed:
            renamed[name] = setting
        elif not setting.default:
            unread.append((setting.name, f"{renamed[name].name} says it, too"))
    mover = Mover(Configuration("axolotl", str(path), stage, renamed, tuple(unread)))
    _datasets(mover)
    _adapter(mover)
    rules.common_rules(mover)
    _attention(mover)
    _template(mover)
    _trackers(mover)
    rules.held_out(mover, "val_set_size")
    if "dpo.loss" in mover.paths:
        _loss(mover, rl)
    if rl == "grpo":
        _group(mover)
    elif rl:
        strength(mover, "rl_beta", "dpo_beta")
    rules.same_as_here(mover, _AS_HERE)
    return mover.finish()


_AS_HERE = {
    "sample_packing": (True, "rows are packed, and do not attend to each other"),
    "train_on_inputs": (False, "only assistant turns are learned"),
}


def _stage(path: Path, given: dict[str, Any]) -> tuple[str, str]:
    """The stage, and axolotl's own word for the method."""
    if given.get("reward_model") is True:
        given.pop("reward_model")
        return "reward", ""
    rl = str(given.pop("rl", None) or "").lower()
    stage = _STAGES.get(rl) if rl else "sft"
    if stage is None or stage not in RECIPES:
        raise RecipeError(f"{path}: rl is {rl!r}, which prefine does not do", f"Its methods are {', '.join(RECIPES)}.")
    return stage, rl


def _trl_section(settings: dict[str, Setting]) -> list[tuple[str, str]]:
    """Take the settings of the section trl by their own names; those that are elsewhere, too, are returned."""
    section = settings.get("trl")
    twice = []
    if section is not None and isinstance(section.value, dict):
        settings.pop("trl")
        for name, value in section.value.items():
            if name in settings and not settings[name].default:
                twice.append((f"trl.{name}", f"{name} is set outside of this section, too"))
            else:
                settings[str(name)] = Setting(str(name), value)
    return twice


def _datasets(mover: Mover) -> None:
    written = False
    for name, field in (("datasets", "data.train"), ("test_datasets", "data.heldout")):
        setting = mover.take(name)
        if setting is None or setting.value is None:
            continue
        entries = setting.value if isinstance(setting.value, list) else [setting.value]
        data = [data_of(f"{name}[{number}]", entry) for number, entry in enumerate(entries)]
        done = write_sources(mover, field, data, Setting(name, f"{len(entries)} of them"))
        written = written or (done and field == "data.train")
    texts = mover.take("pretraining_dataset")
    if texts is not None:
        mover.leave(texts, "prefine learns from conversations, not from plain text")
    missing_data(mover, written)


def _adapter(mover: Mover) -> None:
    kind = mover.take("adapter")
    value = None if kind is None else kind.value
    if value in ("lora", "qlora") and kind is not None:
        mover.leave(kind, "as here, an adapter is trained: section lora")
    elif value is None:
        rules.full_training(mover, "no adapter is configured, so all weights are trained", *filter(None, (kind,)))
    elif kind is not None:
        mover.leave(kind, "prefine trains LoRA adapters or all weights; an adapter by default")
    rules.quantisation(mover)
    _quantised_by_peft(mover)
    if value is None:
        for name in ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_linear"):
            if (setting := mover.take(name)) is not None:
                mover.leave(setting, "adapter is not set, so that it has no effect there either")
        return
    rules.lora_targets(mover, "lora_target_modules")
    rules.adapter_start(mover, "peft_init_lora_weights")
    linear = mover.take("lora_target_linear")
    if linear is not None and linear.value is True:
        mover.write("lora.targets", "all-linear", linear)
    elif linear is not None:
        mover.leave(linear, "lora.targets names the modules; it is all-linear by default")


def _quantised_by_peft(mover: Mover) -> None:
    """The section peft with its backend: bitsandbytes quantises as here."""
    section = mover.take("peft")
    if section is None:
        return
    given = section.value if isinstance(section.value, dict) else {}
    if given.get("backend") == "bnb" and given.get("weight_dtype") in ("nf4", "int8"):
        mover.write("model.quantization", given["weight_dtype"], section)
    else:
        mover.leave(section, "model.quantization has nf4 and int8, of bitsandbytes")


def _attention(mover: Mover) -> None:
    for name, value in _ATTENTION.items():
        setting = mover.take(name)
        if setting is None:
            continue
        if setting.value is True:
            mover.write("model.attn_implementation", value, setting)
        else:
            mover.leave(setting, "it is off: model.attn_implementation says which attention is used")


def _trackers(mover: Mover) -> None:
    """axolotl writes to a tracker where its project is named."""
    project, board = mover.value("wandb_project"), mover.take("use_tensorboard")
    trackers = ["wandb"] if project else []
    if board is not None:
        trackers += ["tensorboard"] if board.value is True else []
        mover.write("training.trackers", trackers, board)
    elif trackers:
        mover.write("training.trackers", trackers, note=f"wandb_project: {project}")


def _template(mover: Mover) -> None:
    name, jinja = mover.take("chat_template"), mover.take("chat_template_jinja")
    if name is not None:
        own = name.value in ("tokenizer_default", None)
        mover.leave(
            name,
            "as here, the tokenizer's own chat template is used" if own else rules.OWN_TEMPLATE,
        )
    if jinja is not None and jinja.value is not None:
        if isinstance(jinja.value, str) and "{" not in jinja.value:
            mover.write("model.chat_template", jinja.value, jinja)
        else:
            mover.leave(jinja, "write the template to a file, and name it as model.chat_template")


def _loss(mover: Mover, rl: str) -> None:
    rl_setting = Setting("rl", rl)
    mover.write("dpo.loss", {"dpo": "sigmoid"}.get(rl, rl), rl_setting)
    if not any(mover.value(name) for name in ("rl_beta", "dpo_beta")):
        mover.write("dpo.beta", _BETA, Setting("rl_beta", _BETA, default=True))
    margin = mover.take("simpo_gamma")
    if rl == "simpo":
        margin = margin or Setting("simpo_gamma", 0.5, default=True)
        mover.write("dpo.simpo_margin", margin.value, margin)
    elif margin is not None:
        mover.leave(margin, "rl is not simpo")


def _group(mover: Mover) -> None:
    group_rollouts(mover, "grpo")
    strength(mover, "beta", "rl_beta")
    functions = mover.take("reward_funcs")
    if functions is not None and isinstance(functions.value, list) and functions.value:
        names = [":".join(str(each).rsplit(".", 1)) for each in functions.value]
        reward_sources(mover, list(names), mover.take("reward_weights"))
