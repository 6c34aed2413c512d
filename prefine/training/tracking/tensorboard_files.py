"""TensorBoard's files, in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy

from prefine.runs.ownership import TRACKERS_NAME
from prefine.training.tracking.tracker import Table, TrackedRun, Tracker, Values, flat, text_of

_ROWS = 50  # each is a page of its own


class TensorboardFiles(Tracker):
    """TensorBoard; the recipe's fields are hyperparameters, the first rows of a table are texts.

    Args:
        facts: the run.
    """

    def __init__(self, facts: TrackedRun) -> None:
        from torch.utils import tensorboard

        library: Any = tensorboard  # it has no types
        writer = library.SummaryWriter(str(Path(facts.recipe.run) / TRACKERS_NAME))
        # The metric is only named here; its values are the scalars with this name.
        for summary in library.summary.hparams(flat(facts.configuration), {"heldout/loss": 0.0}):
            writer.file_writer.add_summary(summary)
        self._writer = writer
        writer.add_text("recipe", _as_code(json.dumps(facts.configuration, indent=2)))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See Tracker."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def histograms(self, values: Values, step: int) -> None:
        """See Tracker."""
        for name, given in values.items():
            self._writer.add_histogram(name, numpy.asarray(given), step)
        self._writer.flush()

    def table(self, name: str, rows: Table, step: int) -> None:
        """See Tracker."""
        for number, row in enumerate(rows[:_ROWS], start=1):
            page = "\n\n".join(f"**{column}**\n\n{_as_code(text_of(value))}" for column, value in row.items())
            self._writer.add_text(f"{name}/{number}", page, step)
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        """See Tracker."""
        self._writer.close()


def _as_code(text: str) -> str:
    """Text as a Markdown code block."""
    return "\n".join(f"    {line}" for line in text.splitlines())
