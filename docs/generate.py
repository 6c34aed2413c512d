"""Writes docs/recipes.md from the recipe models: python docs/generate.py. A test holds the page to the models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from prefine.recipe.dpo import DpoRecipe
from prefine.recipe.kto import KtoRecipe
from prefine.recipe.orpo import OrpoRecipe
from prefine.recipe.reward import RewardRecipe
from prefine.recipe.rl import PpoRecipe
from prefine.recipe.sft import SftRecipe
from prefine.recipe.text import field_rule

PAGE = Path(__file__).parent / "recipes.md"

HEAD = """# Recipes

<!-- Written by docs/generate.py from the models in prefine/recipe. -->

A recipe is a YAML file; every field has a default. `prefine recipe` lists the recipes that come with prefine, and
`prefine recipe dpo > dpo.yaml` writes one with every field and its meaning. `--set section.field=value` changes one
value, as in `--set data.train=mine.jsonl --set dpo.beta=0.3`; the value is YAML. A field that does not exist is an
error that names the nearest one; a setting of TRL, transformers, peft, LLaMA-Factory or axolotl
(`per_device_train_batch_size`, `bf16`, `lora_r`, …) is answered with its field here, or with the reason why there is
none. All errors are shown at once, each on a line. The complete recipe of a run is in its folder as `recipe.yaml`.

`--resume` resumes the run in the recipe's `run` folder; the recipe must be the same, except for `run`,
`training.keep_checkpoints`, `training.trackers`, `training.tracker_project`, the `readiness` section and, if no guard
can roll back, `training.save_every_steps`. Other `readiness` thresholds make the readiness report of a finished run
again, without training.
"""


def choices(values: Sequence[Any]) -> str:
    """The values that a field can have."""
    return " \\| ".join(f"`{value}`" for value in values)


def section(title: str, model: type[BaseModel], defaults: BaseModel) -> str:
    """One table of fields, those of sections inside it with their section's name."""
    lines = [f"## {title}", "", " ".join((model.__doc__ or "").split()), ""]
    return "\n".join([*lines, "| field | default | rule | |", "|---|---|---|---|", *rows(defaults, "")]) + "\n"


def rows(defaults: BaseModel, prefix: str) -> list[str]:
    """A table's rows."""
    lines = []
    for name, field in type(defaults).model_fields.items():
        value = getattr(defaults, name)
        if isinstance(value, BaseModel):
            lines += rows(value, f"{prefix}{name}.")
        else:
            told = "null" if value is None else json.dumps(value).strip('"')
            lines.append(f"| `{prefix}{name}` | `{told}` | {field_rule(field, choices)} | {field.description or ''} |")
    return lines


def page() -> str:
    """The whole page."""
    dpo, kto, orpo, sft, reward, ppo = DpoRecipe(), KtoRecipe(), OrpoRecipe(), SftRecipe(), RewardRecipe(), PpoRecipe()
    parts = [HEAD]
    for recipe, names in (
        (dpo, ("model", "lora", "data", "training", "report", "dpo")),
        (kto, ("kto",)),
        (orpo, ("orpo",)),
        (reward, ("reward", "readiness")),
        (ppo, ("reward", "rollout", "kl", "ppo", "guards")),
        (dpo, ("guards",)),
    ):
        for name in names:
            defaults = getattr(recipe, name)
            title = f"{name} (ppo)" if recipe is ppo and name in ("reward", "guards") else name
            title = f"{name} (all others; chosen_fall is DPO's)" if recipe is dpo and name == "guards" else title
            parts.append(section(title, type(defaults), defaults))
    parts += ["## Which stage has what", "", "| | `run` | sections of its own | other defaults |", "|---|---|---|---|"]
    shared = {"run", "model", "lora", "data", "training"}
    for name, made in (("sft", sft), ("reward", reward), ("dpo", dpo), ("kto", kto), ("orpo", orpo), ("ppo", ppo)):
        own = [key for key in type(made).model_fields if key not in shared]
        sections = ", ".join(f"`{key}`" for key in own)
        parts.append(f"| `prefine {name}` | `{made.run}` | {sections} | {others(made, dpo)} |")
    return "\n".join([*parts, ""])


def others(made: BaseModel, shown: BaseModel) -> str:
    """The defaults of `data` and `training` that differ from those in the table."""
    apart = []
    for name in ("data", "training"):
        mine, theirs = getattr(made, name).model_dump(), getattr(shown, name).model_dump()
        apart += [f"`{name}.{key}: {json.dumps(value)}`" for key, value in mine.items() if value != theirs.get(key)]
    return ", ".join(apart)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
