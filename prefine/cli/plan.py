"""prefine plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from prefine.cli.options import AsJson, Overrides, RecipePath
from prefine.terminal import echo, visible

if TYPE_CHECKING:
    from prefine.planning.fit import Fit
    from prefine.recipe.stage import StageRecipe


def plan(
    recipe: RecipePath,
    overrides: Overrides,
    method: Annotated[
        str | None, typer.Option(help="sft, reward, dpo or ppo; default: by the recipe.", show_default=False)
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Name the cheapest change that fits this memory: 24GB.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict the peak memory, time and disk of a recipe, or of a pipeline's stages that are not cached.

    A pipeline's stages that do not fit are shown with the changes with which they do. No weights are loaded.
    """
    import json

    from prefine.errors import about
    from prefine.planning.fit import bytes_of, fit_stage
    from prefine.planning.plan import plan_stage
    from prefine.recipe.loading import recipe_values
    from prefine.recipe.pipeline_stage import is_pipeline

    with about("--fit"):
        budget = None if fit is None else bytes_of(fit)
    if is_pipeline(recipe_values(recipe)):
        _pipeline(recipe, overrides, method, budget, as_json)
        return
    name, made = _recipe(recipe, overrides, method)
    if budget is None:
        found = plan_stage(made, method=name)
        echo(json.dumps(found.as_json(), indent=2) if as_json else "\n".join(found.lines()))
        return
    fitted = fit_stage(made, method=name, budget_bytes=budget)
    if as_json:
        echo(json.dumps({**fitted.plan.as_json(), "fit": fitted.as_json()}, indent=2))
        return
    echo("\n".join([*fitted.plan.lines(), "", *_fit_lines(fitted)]))


def _pipeline(path: RecipePath, overrides: Overrides, method: str | None, budget: int | None, as_json: bool) -> None:
    """Show a pipeline's stages, cached or to run, with their plans."""
    import json

    from prefine.errors import RecipeError
    from prefine.pipeline.planned import plan_json, plan_lines, plan_pipeline
    from prefine.recipe.pipeline import load_pipeline

    if method is not None:
        raise RecipeError(f"{path} is a pipeline", "Give it with the recipe of one stage.", field="--method")
    planned = plan_pipeline(load_pipeline(path, overrides), budget)
    for line in [json.dumps(plan_json(planned), indent=2)] if as_json else plan_lines(planned, budget):
        echo(visible(line))


def _recipe(path: RecipePath, overrides: Overrides, method: str | None) -> tuple[str, StageRecipe]:
    """The recipe and its method."""
    from prefine.errors import RecipeError
    from prefine.recipe.loading import load_recipe, recipe_values
    from prefine.recipe.method import method_in
    from prefine.recipe.registry import RECIPES

    values = recipe_values(path)
    if method is None:
        method = method_in(values, path.stem)
    elif method not in RECIPES:
        raise RecipeError(f"{method!r:.60} is no method", f"Write one of {', '.join(RECIPES)}.", field="--method")
    return method, load_recipe(path, overrides, RECIPES[method])


def _fit_lines(found: Fit) -> list[str]:
    from prefine.planning.fit import as_options
    from prefine.planning.plan import gigabytes

    budget, before = gigabytes(found.budget), gigabytes(found.before.peak_bytes)
    if not found.made:
        return (
            [f"it fits {budget} as it is"]
            if found.fits
            else [f"it needs {before}, and no change was found that saves memory"]
        )
    peak = gigabytes(found.plan.peak_bytes)
    said = (
        f"to fit {budget} ({before} as it is): {peak} with"
        if found.fits
        else f"nothing fits {budget}; the least found is {peak} with"
    )
    return [said, f"  {as_options(found.changes)}", *(f"  {change.field}: {change.costs}" for change in found.made)]
