"""prefine run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefine.cli.options import Overrides
from prefine.terminal import echo, visible

_DO_NOT_SHIP = 3

PipelinePath = Annotated[
    Path,
    typer.Argument(metavar="PIPELINE", help="A YAML file with stages (docs/pipeline.md).", show_default=False),
]
Start = Annotated[
    str | None,
    typer.Option("--from", metavar="STAGE", help="This stage and those that need it; others are used as they are."),
]
Only = Annotated[
    str | None, typer.Option("--only", metavar="STAGE", help="This stage alone; others are used as they are.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show which stages are cached and which would run, and why.")]
Force = Annotated[bool, typer.Option("--force", help="Run stages again although they are cached.")]


def run(
    pipeline: PipelinePath,
    overrides: Overrides,
    start: Start = None,
    only: Only = None,
    dry_run: DryRun = False,
    force: Force = False,
) -> None:
    """Run a pipeline: train, evaluate, export and report, only what changed. The same command goes on where it was."""
    from rich.console import Console

    from prefine.errors import RecipeError
    from prefine.pipeline.records import PipelineRecords
    from prefine.pipeline.standing import chosen, standings
    from prefine.pipeline.view import PipelineView, standing_lines
    from prefine.recipe.pipeline import load_pipeline
    from prefine.training.loop.launch import launched

    if start is not None and only is not None:
        raise RecipeError("--from and --only are both given", "Give one of them.")
    if launched():
        raise RecipeError(
            "prefine run works in one process, and several were launched",
            "Launch single stages with their own verbs, such as torchrun … -m prefine sft.",
        )
    made = load_pipeline(pipeline, overrides)
    choice = chosen(made, start, only, force)
    if dry_run:
        for line in standing_lines(standings(made, PipelineRecords(made.folder), choice)):
            echo(visible(line))
        return
    from prefine.pipeline.running import run_chosen

    if run_chosen(made, choice, PipelineView(Console())).failed_gates:
        raise typer.Exit(_DO_NOT_SHIP)
