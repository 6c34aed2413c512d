"""The part of a model's README.md that describes the run that trained it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prefine.models.loading.card import Story, plain
from prefine.models.loading.location import portable_path
from prefine.recipe.stage import StageRecipe
from prefine.runs.directory import rows_of_kind
from prefine.training.run.session import Session

# Metrics that say how fast the machine was, not what was learned.
_NOT_SHOWN = ("seconds",)


def about_run(session: Session[StageRecipe]) -> Story:
    """The stage, the recipe's main settings, the row counts of the data and the held-out figures so far."""
    return Story((session.stage,), tuple(_lines(session)))


def _lines(session: Session[StageRecipe]) -> Iterator[str]:
    recipe, training = session.recipe, session.recipe.training
    lora = recipe.lora
    settings: dict[str, Any] = {
        "stage": session.stage,
        "model": portable_path(recipe.model.name, session.run.model),
        "LoRA": "none, all weights are trained" if lora is None else f"rank {lora.r}, alpha {lora.alpha:g}",
        "learning rate": f"{training.learning_rate:g}",
        "batch size": training.batch_size,
        "seed": training.seed,
    }
    yield "## How it was made"
    yield ""
    yield from (f"- {name}: {plain(value)}" for name, value in settings.items())
    for name, counts in session.prepared.counts.items():
        yield f"- rows, {plain(name)}: {counts['rows']}"
    yield ""
    yield "The whole recipe is in the run's `recipe.yaml`; its `manifest.json` records what happened."
    if rows_of_kind(session.run.metrics, "heldout"):
        figures = session.before_and_after()
        yield from ("", "## Held-out figures", "")
        yield "The run's `report.html` has the intervals and says which of these changes are more than chance."
        yield from ("", "| metric | before | after |", "|---|---:|---:|")
        for name, after in figures["after"].items():
            before = figures["before"].get(name)
            if name not in _NOT_SHOWN and isinstance(before, int | float):
                yield f"| {plain(name)} | {before:.4g} | {after:.4g} |"
