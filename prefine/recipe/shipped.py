"""The recipes that come with prefine: files of the package, so that `pip install` is enough."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from prefine.errors import RecipeError


def shipped_recipes() -> dict[str, Path]:
    """Every one's path by its name, those of the quickstart last."""
    folder = Path(str(files("prefine"))) / "recipes"
    found = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    order = ("sft", "reward", "dpo", "ppo")
    return dict(sorted(found.items(), key=lambda item: ("-" in item[0], order.index(stage_of(item[0])))))


def stage_of(name: str) -> str:
    """The verb that a shipped recipe is for: the last word of its name."""
    return name.rpartition("-")[2]


def shipped_recipe(name: str) -> Path:
    """The path of one of them.

    Raises:
        RecipeError: there is none of that name; names those there are.
    """
    known = shipped_recipes()
    if name not in known:
        raise RecipeError(f"There is no recipe {name!r:.60}", f"The recipes are {', '.join(known)}.")
    return known[name]
