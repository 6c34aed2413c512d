"""Writes docs/recipes.md from the recipe models: python docs/generate.py. A test holds the page to the models."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from prefine.recipe import DpoRecipe, SftRecipe

PAGE = Path(__file__).parent / "recipes.md"

HEAD = """# Recipes

<!-- Written by docs/generate.py from prefine/recipe.py. -->

A recipe is a YAML file; every field has a default. `--set section.field=value` changes one value, as in
`--set data.train=mine.jsonl --set dpo.beta=0.3`; the value is YAML. A field that does not exist is an error that names
the nearest one, and everything wrong is told at once. The complete recipe of a run is in its folder as `recipe.yaml`.

`--resume` goes on with the run in the recipe's `run` folder; the recipe must be the same, but for `run`,
`training.keep_checkpoints`, `training.save_every_steps` and `training.trackers`.
"""


def rule(field: FieldInfo) -> str:
    """A field's type and bounds in words."""
    parts = [kind(field.annotation)]
    for bound in [*field.metadata, *getattr(field.annotation, "__metadata__", ())]:
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            if isinstance(bound, Ge | Gt | Le | Lt) and hasattr(bound, name):
                parts.append(f"{sign} {getattr(bound, name)}")
    return ", ".join(parts)


def kind(annotation: Any) -> str:
    """A type in words."""
    if hasattr(annotation, "__metadata__"):
        return kind(get_args(annotation)[0])
    origin = get_origin(annotation)
    if origin is Literal:
        return " \\| ".join(f"`{value}`" for value in get_args(annotation))
    if origin in (Union, types.UnionType):
        return " or ".join(kind(each) for each in get_args(annotation))
    if origin is list:
        return f"list of {kind(get_args(annotation)[0])}"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def section(title: str, model: type[BaseModel], defaults: BaseModel) -> str:
    """One table of fields; sections inside it are left to tables of their own."""
    lines = [f"## {title}", "", (model.__doc__ or "").strip().splitlines()[0], ""]
    lines += ["| field | default | rule | |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        value = getattr(defaults, name)
        if not isinstance(value, BaseModel):
            told = "null" if value is None else json.dumps(value).strip('"')
            lines.append(f"| `{name}` | `{told}` | {rule(field)} | {field.description or ''} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The whole page."""
    dpo, sft = DpoRecipe(), SftRecipe()
    parts = [HEAD]
    for name in ("model", "lora", "data", "training", "report", "dpo"):
        defaults = getattr(dpo, name)
        parts.append(section(name, type(defaults), defaults))
    rates = (
        f"`prefine sft` has another default for `training.learning_rate`, `{sft.training.learning_rate}`, and no `dpo`."
    )
    return "\n".join([*parts, rates, ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
