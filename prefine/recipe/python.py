"""Recipes from Python: a path, a dict or a recipe object, with overrides by keyword."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from prefine.errors import RecipeError
from prefine.recipe.loading import Assignment, checked_recipe, recipe_values
from prefine.recipe.stage import StageRecipe

R = TypeVar("R", bound=StageRecipe)

RecipeLike = str | os.PathLike[str] | Mapping[str, Any] | StageRecipe | None
"""A recipe's file, its values, a recipe object (as `load_recipe` returns), or None for the defaults."""

Keys = tuple[str, ...]


def recipe_from(
    recipe: RecipeLike,
    overrides: Mapping[str, Any],
    model: type[R],
    plain: Callable[[Keys, Any], Any] = lambda keys, value: value,
) -> R:
    """A recipe, checked.

    Args:
        recipe: see RecipeLike.
        overrides: new values by field: nested dicts, `{"data": {"train": "my.jsonl"}}`, or dotted names,
            `{"data.train": "my.jsonl"}`.
        model: the recipe's class.
        plain: turns a Python object in a field's place (a function, rows) into a value of the recipe.

    Raises:
        RecipeError: as on the command line.
    """
    if isinstance(recipe, model) and not overrides:
        return recipe
    values, source = _values(recipe, model)
    return checked_recipe(_plain((), values, plain), assignments_of(overrides, plain), model, source)


def assignments_of(
    overrides: Mapping[str, Any], plain: Callable[[Keys, Any], Any] = lambda keys, value: value
) -> list[Assignment]:
    """Keywords as assignments; see `recipe_from`."""
    found = [each for name, value in overrides.items() for each in _assignments(tuple(name.split(".")), value)]
    return [(keys, _plain(keys, value, plain), origin) for keys, value, origin in found]


def _values(recipe: RecipeLike, model: type[StageRecipe]) -> tuple[dict[str, Any], str]:
    """The values that a recipe sets, and its name for messages."""
    match recipe:
        case None:
            return {}, "recipe"
        case StageRecipe():
            if not isinstance(recipe, model):
                raise RecipeError(
                    f"recipe is a {type(recipe).__name__}, not a {model.__name__}", "Call the function of its stage."
                )
            # Without defaults: some follow from other fields, which may be changed here.
            return recipe.model_dump(mode="json", round_trip=True, exclude_unset=True), "recipe"
        case Mapping():
            return dict(recipe), "recipe"
        case str() | os.PathLike():
            path = Path(os.fspath(recipe)).expanduser()
            return recipe_values(path), str(path)
    raise RecipeError(
        f"recipe is of type {type(recipe).__name__}", "Give a path, a dict, or what prefine.load_recipe returns."
    )


def _assignments(keys: Keys, value: Any) -> list[Assignment]:
    """The fields that a value sets: a dict sets those that it names and leaves the others as they are."""
    if not isinstance(value, Mapping) or not value:
        return [(keys, value, f"keyword {keys[0]}")]
    return [each for name, item in value.items() for each in _assignments((*keys, str(name)), item)]


def _plain(keys: Keys, value: Any, plain: Callable[[Keys, Any], Any]) -> Any:
    """A value as JSON."""
    value = plain(keys, value)
    if isinstance(value, Mapping):
        return {str(name): _plain((*keys, str(name)), item, plain) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(keys, item, plain) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
