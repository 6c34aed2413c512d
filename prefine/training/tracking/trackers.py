"""All trackers of a run: wandb, tensorboard, trackio, mlflow.

A tracker that fails is left out from then on; the run continues.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

from prefine.errors import MissingDependencyError, RecipeError
from prefine.json_reading import read_json_object
from prefine.recipe.stage import StageRecipe
from prefine.runs.directory import RunDirectory, read_metrics
from prefine.training.display import Display
from prefine.training.tracking.mlflow_run import MlflowRun
from prefine.training.tracking.tensorboard_files import TensorboardFiles
from prefine.training.tracking.tracker import (
    Details,
    StartTracker,
    Table,
    TrackedRun,
    Tracker,
    Values,
    finite,
    numbers,
    tracker_name,
)
from prefine.training.tracking.trackio_run import TrackioRun
from prefine.training.tracking.wandb_run import WandbRun

_OFFLINE = {"wandb": "Run wandb login, or set WANDB_MODE=offline, which needs no account"}
# Names of the per-row results in evaluation.json, for DPO and ORPO, KTO, SFT and PPO.
_ROWS_OF_STAGES = ("pairs", "votes", "rows", "responses")
_KINDS: Mapping[str, StartTracker] = {
    "wandb": WandbRun,
    "tensorboard": TensorboardFiles,
    "trackio": TrackioRun,
    "mlflow": MlflowRun,
}


class Trackers:
    """All trackers of a run; none by default. A context manager: leaving it closes them.

    Args:
        trackers: by name.
        display: shows a warning if a tracker fails.
    """

    def __init__(self, trackers: Mapping[str, Tracker] | None = None, display: Display | None = None) -> None:
        self._trackers = dict(trackers or {})
        self._display = display

    def __bool__(self) -> bool:
        """Whether there is any left."""
        return bool(self._trackers)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See Tracker."""
        named = {tracker_name(name): value for name, value in values.items()}
        self._each(lambda tracker: tracker.log(named, step))

    def histograms(self, values: Values, step: int) -> None:
        """See Tracker. Values that are not finite are left out."""
        self._each(lambda tracker: _histograms(tracker, values, step))

    def table(self, name: str, rows: Table, step: int) -> None:
        """See Tracker."""
        self._each(lambda tracker: _table(tracker, name, rows, step))

    def details(self, name: str, details: Details, step: int) -> None:
        """Show histograms `NAME/…` and a table `NAME`."""
        self._each(lambda tracker: _details(tracker, name, details, step))

    def show(self, name: str, rows: Table, step: int) -> None:
        """Show rows, and histograms `NAME/COLUMN` of their numbers."""
        self._each(lambda tracker: _details(tracker, name, Details(numbers(rows), rows), step))

    def warn(self, problem: str) -> None:
        """Say what they are not given."""
        if self._display is not None:
            self._display.say(f"warning: {problem}")

    def close(self, *, failed: bool = False) -> None:
        """See Tracker."""
        self._each(lambda tracker: tracker.close(failed=failed))
        self._trackers = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)

    def _each(self, do: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                do(tracker)
            except Exception as error:  # noqa: BLE001 - a tracker's failure must not end the run
                del self._trackers[name]
                with suppress(Exception):  # otherwise the next run of this process would continue this one's
                    tracker.close(failed=True)
                self.warn(f"{name} failed and is left out from now on: {_in_words(error)}")


def require_trackers(recipe: StageRecipe) -> None:
    """Raise MissingDependencyError if a tracker's package is not installed."""
    for name in recipe.training.trackers:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # no origin: a folder of that name, such as wandb's logs
            raise MissingDependencyError(
                f"{name} is not installed", f"Run: pip install {name}; or leave it out.", field="training.trackers"
            )


def start_trackers(recipe: StageRecipe, stage: str, run_id: str, resumed: bool, display: Display) -> Trackers:
    """Start the trackers that a recipe names. Main process only.

    Raises:
        RecipeError: one cannot be started.
    """
    facts = TrackedRun(recipe, stage, run_id, resumed)
    started: dict[str, Tracker] = {}
    for name in recipe.training.trackers:
        try:
            started[name] = _KINDS[name](facts)
        except Exception as error:
            Trackers(started).close(failed=True)
            raise RecipeError(
                f"{name} could not be started: {_in_words(error)}",
                _OFFLINE.get(name, f"Set {name} up") + ", or leave it out.",
                field="training.trackers",
            ) from error
    return Trackers(started, display)


def show_results(run: RunDirectory, trackers: Trackers, step: int) -> None:
    """Show a finished run's samples before and after, and its results per held-out row, if its stage has them."""
    if not trackers:
        return
    try:
        samples = read_metrics(run.samples) if run.samples.exists() else []
        heldout = read_json_object(run.evaluation).get("heldout") or {}
        tables: dict[str, Table] = {"samples": samples} | {
            f"heldout_{part}": heldout.get(part) or [] for part in _ROWS_OF_STAGES
        }
    except Exception as error:  # noqa: BLE001 - everything is learned and on the disk
        trackers.warn(f"the trackers do not get the results, which cannot be read: {_in_words(error)}")
        return
    for name, rows in tables.items():
        trackers.show(name, rows, step)


def _histograms(tracker: Tracker, values: Values, step: int) -> None:
    if kept := finite(values):
        tracker.histograms(kept, step)


def _table(tracker: Tracker, name: str, rows: Table, step: int) -> None:
    if rows:
        tracker.table(name, rows, step)


def _details(tracker: Tracker, name: str, details: Details, step: int) -> None:
    _histograms(tracker, {f"{name}/{column}": values for column, values in details.values.items()}, step)
    _table(tracker, name, details.rows, step)


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".replace("\n", " ")
