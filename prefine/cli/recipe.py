"""prefine recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from prefine.terminal import echo


def _names(incomplete: str) -> list[str]:
    from prefine.recipe.shipped import shipped_pipelines, shipped_recipes

    return [name for name in shipped_recipes() | shipped_pipelines() if name.startswith(incomplete)]


def recipe(
    name: Annotated[
        str | None,
        typer.Argument(help="A recipe's name; without it, all are listed.", autocompletion=_names, show_default=False),
    ] = None,
) -> None:
    """Print one of the recipes that come with prefine, with every field explained, or a pipeline of several stages;
    without a NAME, list them.
    """
    from prefine.recipe.registry import RECIPES
    from prefine.recipe.shipped import about_pipeline, shipped_pipelines, shipped_recipes, stage_of
    from prefine.recipe.text import commented_recipe

    pipelines = shipped_pipelines()
    if name in pipelines:
        echo(pipelines[name].read_text("utf-8").removesuffix("\n"))
        return
    if name is not None:
        echo(commented_recipe(name).removesuffix("\n"))
        return
    for known in shipped_recipes():
        about = " ".join((RECIPES[stage_of(known)].__doc__ or "").split()).rstrip(".")
        part = ", as in the quickstart" if "-" in known else ""
        echo(f"{known:<18} {about}{part}")
    echo("Pipelines, for prefine run:")
    for known, path in pipelines.items():
        echo(f"{known:<18} {about_pipeline(path)}")
    echo("To write one: prefine recipe NAME > NAME.yaml")
