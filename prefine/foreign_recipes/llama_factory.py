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
from prefine.foreign_recipes.sources import ForeignData, missing_data, source_name, write_sources
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
_COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "messages": "conversations",
    "kto_tag": "label",
}
# Keys of dataset_info.json that are read besides those of `ForeignData`.
_READ_OF_ENTRIES = ("columns", "num_samples")
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
    found: dict[str, list[Any]] = {}
    for name, field in (("dataset", "data.train"), ("eval_dataset", "data.heldout")):
        setting = mover.take(name)
        if setting is None or setting.value is None:
            if field == "data.train":
                missing_data(mover, written=False)
            continue
        value = setting.value
        names = [str(each).strip() for each in (value if isinstance(value, list) else str(value).split(","))]
        data = [_data(each, info.get(each), info_path.parent) for each in names]
        write_sources(mover, field, data, setting, split="train")
        unknown = [each for each in names if not isinstance(info.get(each), dict)]
        if unknown:
            mover.todo(f"Set {field}: {info_path} does not say where {', '.join(unknown)} is.")
        elsewhere = [each for each in names if each not in unknown and not _can_be_read(info[each])]
        if elsewhere:
            mover.todo(f"Set {field}: {info_path} has no file or hf_hub_url for {', '.join(elsewhere)}.")
        found[field] = [info[each] for each in names if each not in unknown]
    _columns(mover, found.get("data.train", []), found.get("data.heldout", []))
    _limit(mover, found.get("data.train", []))
    for entry in found.get("data.heldout", []):
        if "num_samples" in entry:
            mover.leave(Setting("num_samples of eval_dataset", entry["num_samples"]), "all held-out rows are read")
    if folder is not None:
        mover.leave(folder, "the sources name their files")


def _can_be_read(entry: dict[str, Any]) -> bool:
    return isinstance(entry.get("hf_hub_url"), str) or isinstance(entry.get("file_name"), str)


def _data(name: str, entry: Any, folder: Path) -> ForeignData:
    """A data set by its entry of dataset_info.json; the data set of a hub comes before a file."""
    label = f"dataset_info.json {name}"
    if not isinstance(entry, dict):
        return ForeignData(label, (name if "/" in name or "." in name else str(folder / name),))
    keys = {key: value for key, value in entry.items() if key not in _READ_OF_ENTRIES}
    split = keys.pop("split", None)
    given = None if split is None else Setting(f"{label}.split", str(split))
    if isinstance(entry.get("hf_hub_url"), str):
        keys.pop("hf_hub_url")
        return ForeignData(label, (source_name(entry["hf_hub_url"], keys.pop("subset", None)),), given, keys)
    file = keys.pop("file_name") if _can_be_read(entry) else name
    return ForeignData(label, (str(folder / file),), given, keys)


def _limit(mover: Mover, entries: list[Any]) -> None:
    """Numbers of rows count those of each data set there, and those of all together here."""
    given = [Setting("num_samples", entry["num_samples"]) for entry in entries if entry.get("num_samples") is not None]
    if mover.value("max_samples") is not None and (most := mover.take("max_samples")) is not None:
        given.append(most)
    counts = [setting for setting in given if rules.is_count(setting.value)]
    for setting in given:
        if setting not in counts:
            mover.leave(setting, "it is not a whole number above 0; set data.limit")
        elif len(entries) > 1:
            mover.leave(setting, "it counts the rows of each data set; data.limit counts those of all together")
    if counts and len(entries) > 1:
        mover.todo("Set data.limit to the rows of all data sets together: the file limits those of each.")
    elif counts:
        mover.write("data.limit", min(setting.value for setting in counts), *counts)


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


def _columns(mover: Mover, entries: list[Any], heldout: list[Any]) -> None:
    """Columns with other names than the layout's own."""
    for entry in entries:
        given = entry.get("columns")
        if given is None:
            continue
        setting = Setting("columns of dataset_info.json", given)
        renamed = _renamed(given)
        if not renamed:
            mover.leave(setting, "as here: rows are read by these columns")
        elif len(entries) == 1:
            mover.write("data.columns", renamed, setting)
        else:
            mover.leave(setting, "data.columns is for all sources; prepare them with one set of columns")
    written = _renamed(entries[0].get("columns")) if len(entries) == 1 else {}
    for entry in heldout:
        given = entry.get("columns")
        if given is not None and _renamed(given) != written:
            mover.leave(
                Setting("columns of eval_dataset", given), "data.columns is for all sources, those of data.train"
            )


def _renamed(given: Any) -> dict[str, str]:
    if not isinstance(given, dict):
        return {}
    columns = {str(_COLUMNS.get(name, name)): column for name, column in given.items()}
    return {name: column for name, column in columns.items() if column is not None and name != column}
