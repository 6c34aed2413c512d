"""The recipes that come with prefine, as files of the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from prefine.errors import RecipeError


def shipped_recipes() -> dict[str, Path]:
    """Name -> path of each, those of the quickstart last."""
    folder = Path(str(files("prefine"))) / "recipes"
    found = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    order = ("sft", "reward", "dpo", "kto", "orpo", "ppo")
    return dict(sorted(found.items(), key=lambda item: ("-" in item[0], order.index(stage_of(item[0])))))


def shipped_pipelines() -> dict[str, Path]:
    """Name -> path of each pipeline that comes with prefine."""
    folder = Path(str(files("prefine"))) / "recipes" / "pipelines"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def about_pipeline(path: Path) -> str:
    """What a shipped pipeline is for: the second line of its file."""
    return path.read_text("utf-8").splitlines()[1].removeprefix("# ").rstrip(".")


def stage_of(name: str) -> str:
    """The stage of a shipped recipe: the last word of its name."""
    return name.rpartition("-")[2]


def shipped_recipe(name: str) -> Path:
    """The path of a shipped recipe.

    Raises:
        RecipeError: there is no recipe of that name; the message lists all names.
    """
    known = shipped_recipes()
    if name not in known:
        others = ", ".join(shipped_pipelines())
        raise RecipeError(
            f"There is no recipe {name!r:.60}", f"The recipes are {', '.join(known)}; the pipelines {others}."
        )
    return known[name]
