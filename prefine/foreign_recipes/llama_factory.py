"""Configurations of LLaMA-Factory: the YAML or JSON file of `llamafactory-cli train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefine.errors import RecipeError
from prefine.foreign_recipes import rules
from prefine.foreign_recipes.mover import Mover
from prefine.foreign_recipes.objectives import strength
from prefine.foreign_recipes.settings import Configuration, Moved, Setting
from prefine.foreign_recipes.sources import missing_data, source_name
from prefine.recipe.loading import recipe_values
from prefine.recipe.registry import RECIPES

_STAGES = {"sft": "sft", "rm": "reward", "dpo": "dpo", "kto": "kto", "ppo": "ppo"}
# Its defaults of what decides the result (hparams/*_args.py, and transformers' TrainingArguments).
DEFAULTS: dict[str, Any] = {
    **{"learning_rate": 5e-5, "num_train_epochs": 3.0, "per_device_train_batch_size": 8},
    **{"gradient_accumulation_steps": 1, "lr_scheduler_type": "linear", "warmup_steps": 0, "seed": 42},
    **{"cutoff_len": 2048},
}
_PREFERENCE_DEFAULTS = {"pref_beta": 0.1}
_LORA_RANK = 8
_PISSA_PASSES = 16
_BETA_OF_STAGES = ("dpo", "orpo", "kto")
# Its names of columns -> prefine's, whose names are those of the layouts that it reads by default.
_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "messages": "conversations"}
_MOST_BYTES = 16 * 1024 * 1024


def from_llama_factory(path: Path, method: str | None = None) -> Moved:
    """A configuration of LLaMA-Factory in prefine's terms.

    Args:
        path: a YAML or JSON file.
        method: refused if it is not the one that the file says.

    Raises:
        RecipeError: the file cannot be read, or its stage has no counterpart.
    """
    settings = {str(name): Setting(str(name), value) for name, value in recipe_values(path).items()}
    stage = _stage(path, settings)
    if method not in (None, stage):
        raise RecipeError(f"{path} is a configuration for {stage}, not for {method}", "Leave --method out.")
    defaults = DEFAULTS | (_PREFERENCE_DEFAULTS if stage in _BETA_OF_STAGES else {})
    for name, value in defaults.items():
        if not (name == "warmup_steps" and "warmup_ratio" in settings):
            settings.setdefault(name, Setting(name, value, default=True))
    mover = Mover(Configuration("LLaMA-Factory", str(path), stage, settings))
    _datasets(mover, path)
    _adapter(mover)
    _quantisation(mover)
    rules.common_rules(mover)
    rules.held_out(mover, "val_size")
    template = mover.take("template")
    if template is not None:
        mover.leave(template, rules.OWN_TEMPLATE)
    if "dpo.loss" in mover.paths:
        _preferences(mover)
    strength(mover, "pref_beta")
    _rewards(mover)
    rules.same_as_here(mover, _AS_HERE)
    return mover.finish()


_AS_HERE = {
    "train_on_prompt": (False, "only answers are learned"),
    "packing": (True, "rows are packed"),
    "neat_packing": (True, "packed rows do not attend to each other"),
}


def _stage(path: Path, settings: dict[str, Setting]) -> str:
    setting = settings.pop("stage", Setting("stage", "sft"))
    stage = _STAGES.get(str(setting.value))
    if setting.value == "dpo" and "pref_loss" in settings and settings["pref_loss"].value == "orpo":
        settings.pop("pref_loss")
        stage = "orpo"
    if stage is None or stage not in RECIPES:
        raise RecipeError(
            f"{path}: stage is {setting.value!r}, which prefine does not do", f"Its methods are {', '.join(RECIPES)}."
        )
    return stage


def _adapter(mover: Mover) -> None:
    kind = mover.take("finetuning_type")
    value = "lora" if kind is None else kind.value
    if kind is not None and value == "lora":
        mover.leave(kind, "as here, an adapter is trained: section lora")
    elif kind is not None and value == "full":
        rules.full_training(mover, "", kind)
    elif kind is not None:
        mover.leave(kind, "prefine trains LoRA adapters or all weights; an adapter by default")
    if value != "lora":
        return
    rank = mover.take("lora_rank") or Setting("lora_rank", _LORA_RANK, default=True)
    mover.write("lora.r", rank.value, rank)
    alpha = mover.take("lora_alpha")
    if alpha is not None and alpha.value:
        mover.write("lora.alpha", alpha.value, alpha)
    elif isinstance(rank.value, int):
        mover.write("lora.alpha", 2 * rank.value, note="twice lora_rank by default")
    rules.lora_targets(mover, "lora_target")
    if mover.value("pissa_init") is True:
        passes = mover.take("pissa_iter") or Setting("pissa_iter", _PISSA_PASSES, default=True)
        rules.adapter_start(mover, "pissa_init", passes)


def _quantisation(mover: Mover) -> None:
    bits, method = mover.take("quantization_bit"), mover.take("quantization_method")
    names = {4: "nf4", 8: "int8"}
    if bits is not None and bits.value is not None:
        if bits.value in names:
            mover.write("model.quantization", names[bits.value], bits)
        else:
            mover.leave(bits, "weights have 4 bits (nf4) or 8 (int8)")
    if method is not None:
        as_here = method.value in ("bnb", "bitsandbytes")
        mover.leave(method, f"{'as here, ' if as_here else ''}weights are quantised by bitsandbytes")


def _preferences(mover: Mover) -> None:
    loss, smoothing = mover.take("pref_loss"), mover.take("dpo_label_smoothing")
    margin = mover.take("simpo_gamma")
    flipped = smoothing is not None and smoothing.value
    name = "sigmoid" if loss is None else str(loss.value)
    if flipped and name == "sigmoid" and smoothing is not None:
        mover.write("dpo.loss", "conservative", *filter(None, (loss, smoothing)))
        mover.write("dpo.label_smoothing", smoothing.value, smoothing)
    elif loss is not None and name == "kto_pair":
        mover.leave(loss, "dpo.loss has sigmoid, conservative, robust, hinge, ipo and simpo")
    elif loss is not None:
        mover.write("dpo.loss", name, loss)
    if smoothing is not None and not flipped:
        mover.leave(smoothing, "it is 0: no label is taken as flipped")
    if name == "simpo":
        margin = margin or Setting("simpo_gamma", 0.5, default=True)
        mover.write("dpo.simpo_margin", margin.value, margin)
    elif margin is not None:
        mover.leave(margin, "pref_loss is not simpo")


def _rewards(mover: Mover) -> None:
    name = mover.take("reward_model")
    if name is not None and name.value is not None:
        mover.write("reward.name", name.value, name)
        mover.todo(
            "reward.name: prefine reads its own reward runs and reward models of the hub, not LLaMA-Factory's adapters."
        )
    target = mover.take("ppo_target")
    if target is not None:
        mover.leave(target, "it is the KL of an answer; kl.target is in nats a token, with kl.controller adaptive")


def _datasets(mover: Mover, path: Path) -> None:
    """Data sets are names in dataset_info.json, which says where their files are."""
    folder = mover.take("dataset_dir")
    info_path, info = _information(path, "data" if folder is None else str(folder.value))
    for name, field in (("dataset", "data.train"), ("eval_dataset", "data.heldout")):
        setting = mover.take(name)
        if setting is None or setting.value is None:
            if field == "data.train":
                missing_data(mover, written=False)
            continue
        value = setting.value
        names = [str(each).strip() for each in (value if isinstance(value, list) else str(value).split(","))]
        entries = [(each, info.get(each)) for each in names]
        mover.write(field, _one_or_all([_place(each, entry, info_path.parent) for each, entry in entries]), setting)
        unknown = [each for each, entry in entries if entry is None]
        if unknown:
            mover.todo(f"Set {field}: {info_path} does not say where {', '.join(unknown)} is.")
        if field == "data.train":
            _columns(mover, [entry for _, entry in entries if entry is not None])
    if folder is not None:
        mover.leave(folder, "the sources name their files")


def _one_or_all(sources: list[str]) -> str | list[str]:
    return sources[0] if len(sources) == 1 else sources


def _information(path: Path, folder: str) -> tuple[Path, dict[str, Any]]:
    """dataset_info.json of the folder, as LLaMA-Factory finds it from the working directory, or beside the file."""
    places = [Path(folder) / "dataset_info.json", path.parent / folder / "dataset_info.json"]
    for place in places:
        try:
            if place.is_file() and place.stat().st_size <= _MOST_BYTES:
                found = json.loads(place.read_text("utf-8"))
                return place, found if isinstance(found, dict) else {}
        except (OSError, ValueError, RecursionError):
            continue
    return places[0], {}


def _place(name: str, entry: Any, folder: Path) -> str:
    if not isinstance(entry, dict):
        return name if "/" in name or "." in name else str(folder / name)
    if isinstance(entry.get("hf_hub_url"), str):
        return source_name(entry["hf_hub_url"], entry.get("subset"))
    return str(folder / str(entry.get("file_name", name)))


def _columns(mover: Mover, entries: list[Any]) -> None:
    """Columns with other names than the layout's own."""
    for entry in entries:
        given = entry.get("columns") if isinstance(entry, dict) else None
        if not isinstance(given, dict):
            continue
        columns = {_COLUMNS.get(name, name): column for name, column in given.items()}
        renamed = {name: column for name, column in columns.items() if column is not None and name != column}
        setting = Setting("columns of dataset_info.json", given)
        if renamed and len(entries) == 1:
            mover.write("data.columns", renamed, setting)
        elif renamed:
            mover.leave(setting, "data.columns is for all sources; prepare them with one set of columns")
