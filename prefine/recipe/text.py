"""Recipes with every field, as `prefine recipe NAME` prints them; made from the pydantic models, so none is missing."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from prefine.recipe.loading import load_recipe, recipe_values, yaml_value
from prefine.recipe.registry import RECIPES
from prefine.recipe.sections import LARGEST_COUNT
from prefine.recipe.shipped import shipped_recipe, stage_of

_COMMENT_COLUMN = 44
_HOW_TO_READ = (
    '## All fields are here. A line that begins with "# " has the default: to change it, remove "# ", also from its',
    "## section. prefine reads this file unchanged; --set dpo.beta=0.3 changes one value for one run.",
)


def commented_recipe(name: str) -> str:
    """A shipped recipe with all fields; those that it does not set are comments with the default.

    Raises:
        RecipeError: there is no recipe of that name.
    """
    path = shipped_recipe(name)
    recipe = load_recipe(path, [], RECIPES[stage_of(name)])
    head = [f"#{line}" for line in path.read_text("utf-8").splitlines() if line.startswith("# ")]
    return "\n".join([*head, *_HOW_TO_READ, *_fields(recipe, recipe_values(path), 0)]) + "\n"


def _fields(section: BaseModel, sets: dict[str, Any], depth: int) -> Iterator[str]:
    """A line for each field, and for the fields of sections inside it.

    Args:
        section: with its defaults.
        sets: the fields that the recipe sets, as in its file.
        depth: of nested sections.
    """
    plain = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value, is_set = getattr(section, name), name in sets
        if depth == 0:
            yield ""
        if not isinstance(value, BaseModel):
            yield _line(name, plain[name], depth, is_set, _about(field))
            continue
        yield f"## {'  ' * depth}{' '.join((type(value).__doc__ or '').split())}"
        yield f"{'  ' * depth}{name}:" if is_set else f"# {'  ' * depth}{name}:"
        yield from _fields(value, sets[name] if is_set else {}, depth + 1)


def _line(name: str, value: Any, depth: int, is_set: bool, about: str) -> str:
    written = f"{'' if is_set else '# '}{'  ' * depth}{name}: {yaml_value(value)}"
    return f"{written:<{_COMMENT_COLUMN}}  # {about}".rstrip()


def _about(field: FieldInfo) -> str:
    """A field's meaning, with its type and bounds in brackets."""
    rule = field_rule(field, lambda values: " | ".join(map(str, values)))
    if (inner := _listed_section(field.annotation)) is not None:
        rule = f"list of sections, each with {', '.join(inner.model_fields)}"
    return f"{field.description} ({rule})" if field.description else rule


def _listed_section(annotation: Any) -> type[BaseModel] | None:
    if get_origin(annotation) is not list:
        return None
    item = get_args(annotation)[0]
    return item if isinstance(item, type) and issubclass(item, BaseModel) else None


def field_rule(field: FieldInfo, choices: Callable[[Sequence[Any]], str]) -> str:
    """A field's type and bounds in words.

    Args:
        field: of a recipe's model.
        choices: how the values of a Literal are written.
    """
    parts = [_kind(field.annotation, choices)]
    for bound in [*field.metadata, *getattr(field.annotation, "__metadata__", ())]:
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            # The bound of all counts is not worth showing.
            if isinstance(bound, Ge | Gt | Le | Lt) and getattr(bound, name, LARGEST_COUNT) < LARGEST_COUNT:
                parts.append(f"{sign} {getattr(bound, name)}")
    return ", ".join(parts)


def _kind(annotation: Any, choices: Callable[[Sequence[Any]], str]) -> str:
    """A type in words."""
    if hasattr(annotation, "__metadata__"):
        return _kind(get_args(annotation)[0], choices)
    origin = get_origin(annotation)
    if origin is Literal:
        return choices(get_args(annotation))
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(each, choices) for each in get_args(annotation))
    if origin is list:
        return f"list of {_kind(get_args(annotation)[0], choices)}"
    if origin is dict:
        return "mapping"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))
