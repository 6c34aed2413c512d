"""Pipelines from Python."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefine.pipeline.running import PipelineResult, run_chosen
from prefine.pipeline.standing import chosen
from prefine.pipeline.view import PipelineView
from prefine.recipe.loading import recipe_values
from prefine.recipe.pipeline import checked_pipeline
from prefine.recipe.python import assignments_of


def run_pipeline(
    pipeline: str | os.PathLike[str] | Mapping[str, Any],
    *,
    start: str | None = None,
    only: str | None = None,
    force: bool = False,
    display: bool | None = None,
    **overrides: Any,
) -> PipelineResult:
    """Run a pipeline, as `prefine run`: the stages that are not cached. The same call goes on after an interruption.

    Args:
        pipeline: a path, or the values of such a file.
        start: this stage and those that need it; the results of the others are used as they are.
        only: this stage alone, likewise.
        force: run stages although they are cached.
        display: True shows the command line's output, False nothing; None shows it in terminals only.
        overrides: fields, nested or dotted: `**{"stages.dpo.dpo.beta": 0.3}`.

    Returns:
        Which stages ran and which were cached, the page, and the gates that are not passed.

    Raises:
        PrefineError: the pipeline is not valid, or a stage cannot go on; what is finished is kept.
        Paused: interrupted.
    """
    from rich.console import Console

    if isinstance(pipeline, Mapping):
        values, file = copy.deepcopy(dict(pipeline)), None
    else:
        file = Path(pipeline)
        values = recipe_values(file)
    made = checked_pipeline(values, assignments_of(overrides), "pipeline" if file is None else str(file), file)
    console = Console()
    shown = console.is_terminal if display is None else display
    return run_chosen(made, chosen(made, start, only, force), PipelineView(console, shown))
