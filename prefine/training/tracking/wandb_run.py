"""Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefine.runs.ownership import TRACKERS_NAME
from prefine.training.tracking.tracker import Table, TrackedRun, Tracker, Values, cell_of


class WandbRun(Tracker):
    """A run of Weights & Biases; the recipe is its nested configuration.

    Args:
        facts: the run.
    """

    def __init__(self, facts: TrackedRun) -> None:
        # wandb reports its own errors to its vendor, even offline; users who want that can set this to true.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._wandb = wandb
        folder = Path(facts.recipe.run) / TRACKERS_NAME
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=facts.project,
            name=facts.name,
            id=facts.run_id,
            resume="allow" if facts.resumed else None,
            job_type=facts.stage,
            config=facts.configuration,
            dir=str(folder),
            settings=wandb.Settings(console="off"),  # a run has one console output, its display
        )
        # Our own step metric: wandb's step cannot go back, but a guard or a resume may go back.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See Tracker."""
        self._log(values, step)

    def histograms(self, values: Values, step: int) -> None:
        """See Tracker."""
        self._log({name: self._wandb.Histogram(list(given)) for name, given in values.items()}, step)

    def table(self, name: str, rows: Table, step: int) -> None:
        """See Tracker."""
        columns: list[str | int] = [*rows[0]]
        cells = [[cell_of(row.get(str(column))) for column in columns] for row in rows]
        self._log({name: self._wandb.Table(columns=columns, data=cells, allow_mixed_types=True)}, step)

    def close(self, *, failed: bool) -> None:
        """See Tracker."""
        self._run.finish(exit_code=int(failed))

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        self._run.log({**values, "step": step})
