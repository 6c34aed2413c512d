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

        self._library: Any = tensorboard  # it has no types
        self._facts = facts
        # A resumed run repeats steps: what follows its first one is no longer shown, and that step is not known yet.
        self._opened: Any = None if facts.resumed else self._open(None)

    def _open(self, purge_step: int | None) -> Any:
        folder = Path(self._facts.recipe.run) / TRACKERS_NAME
        writer = self._library.SummaryWriter(str(folder), purge_step=purge_step)
        # The metric is only named here; its values are the scalars with this name.
        for summary in self._library.summary.hparams(flat(self._facts.configuration), {"heldout/loss": 0.0}):
            writer.file_writer.add_summary(summary)
        writer.add_text("recipe", _as_code(json.dumps(self._facts.configuration, indent=2)))
        return writer

    def _writer(self, step: int) -> Any:
        if self._opened is None:
            self._opened = self._open(step or None)
        return self._opened

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See Tracker."""
        writer = self._writer(step)
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    def histograms(self, values: Values, step: int) -> None:
        """See Tracker."""
        writer = self._writer(step)
        for name, given in values.items():
            writer.add_histogram(name, numpy.asarray(given), step)
        writer.flush()

    def table(self, name: str, rows: Table, step: int) -> None:
        """See Tracker."""
        writer = self._writer(step)
        for number, row in enumerate(rows[:_ROWS], start=1):
            page = "\n\n".join(f"**{column}**\n\n{_as_code(text_of(value))}" for column, value in row.items())
            writer.add_text(f"{name}/{number}", page, step)
        writer.flush()

    def close(self, *, failed: bool) -> None:
        """See Tracker."""
        if self._opened is not None:
            self._opened.close()


def _as_code(text: str) -> str:
    """Text as a Markdown code block."""
    return "\n".join(f"    {line}" for line in text.splitlines())
