"""MLflow: the store that MLFLOW_TRACKING_URI names; MLflow's default is the current folder."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any

import numpy

from prefine.training.tracking.tracker import Table, TrackedRun, Tracker, Values, cell_of, flat

_BATCH = 100  # the most parameters that it accepts at once
_RUN_ID = "prefine.run_id"
_BINS = 32
_QUANTILES = {"p05": 0.05, "p50": 0.5, "p95": 0.95}


class MlflowRun(Tracker):
    """A run of MLflow; the recipe's fields are its parameters, tables are among its artifacts.

    MLflow has no histograms: three quantiles are metrics `NAME/p05`, `NAME/p50` and `NAME/p95`, and counts and edges of
    bins are an artifact of the same name.

    Args:
        facts: the run.
    """

    def __init__(self, facts: TrackedRun) -> None:
        # MLflow reports its use to its vendor; users who want that can set this to false.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        self._library: Any = importlib.import_module("mlflow")
        experiment = self._library.set_experiment(facts.project).experiment_id
        known = self._known(experiment, facts) if facts.resumed else None
        tags = {_RUN_ID: facts.run_id, "prefine.stage": facts.stage}
        self._run = self._library.start_run(run_id=known, run_name=None if known else facts.name, tags=tags)
        fields = [] if known else list(flat(facts.configuration).items())
        try:
            for at in range(0, len(fields), _BATCH):
                self._library.log_params(dict(fields[at : at + _BATCH]))
        except BaseException:  # left active, it would refuse the next run of this process
            self._library.end_run("FAILED")
            raise

    def _known(self, experiment: str, facts: TrackedRun) -> str | None:
        """The run that a resumed run continues, if it was tracked before."""
        found = self._library.MlflowClient().search_runs([experiment], f"tags.`{_RUN_ID}` = '{facts.run_id}'")
        return found[0].info.run_id if found else None

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See Tracker."""
        self._library.log_metrics(dict(values), step=step)

    def histograms(self, values: Values, step: int) -> None:
        """See Tracker."""
        quantiles: dict[str, float] = {}
        for name, given in values.items():
            counts, edges = numpy.histogram(given, bins=_BINS)
            self._library.log_dict({"counts": counts.tolist(), "edges": edges.tolist()}, f"{name}/step_{step}.json")
            quantiles |= {f"{name}/{word}": float(numpy.quantile(given, at)) for word, at in _QUANTILES.items()}
        self.log(quantiles, step)

    def table(self, name: str, rows: Table, step: int) -> None:
        """See Tracker. The tables of several steps are one table."""
        columns = {column: [cell_of(row.get(column)) for row in rows] for column in rows[0]}
        self._library.log_table({"step": [step] * len(rows), **columns}, artifact_file=f"{name}.json")

    def close(self, *, failed: bool) -> None:
        """See Tracker."""
        self._library.end_run("FAILED" if failed else "FINISHED")
