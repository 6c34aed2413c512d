"""trackio: a local database, unless TRACKIO_SPACE_ID or TRACKIO_SERVER_URL names another place."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Mapping
from typing import Any

from prefine.training.tracking.tracker import Table, TrackedRun, Tracker, Values, cell_of


class TrackioRun(Tracker):
    """A run of trackio; the recipe is its nested configuration.

    trackio knows a run by its name alone, so the name has a part of the run's id: another run of the same folder's name
    stays another run.

    Args:
        facts: the run.
    """

    def __init__(self, facts: TrackedRun) -> None:
        self._library: Any = importlib.import_module("trackio")
        with contextlib.redirect_stdout(io.StringIO()):  # a run has one console output, its display
            self._run = self._library.init(
                project=facts.project,
                name=facts.unique_name,
                config=facts.configuration,
                resume="allow" if facts.resumed else "never",
                embed=False,  # in a notebook it would start a server
                auto_log_gpu=False,  # the loop measures memory and use itself
                auto_log_cpu=False,
            )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See Tracker."""
        self._run.log(dict(values), step=step)

    def histograms(self, values: Values, step: int) -> None:
        """See Tracker."""
        self._run.log({name: self._library.Histogram(list(given)) for name, given in values.items()}, step=step)

    def table(self, name: str, rows: Table, step: int) -> None:
        """See Tracker."""
        cells = [{column: cell_of(value) for column, value in row.items()} for row in rows]
        self._run.log({name: self._library.Table(data=cells)}, step=step)

    def close(self, *, failed: bool) -> None:
        """See Tracker."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._library.finish()  # the run's own method would be called, and print, once more at exit
