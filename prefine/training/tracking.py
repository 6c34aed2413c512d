"""Reports a run to experiment trackers (wandb, tensorboard, trackio, mlflow), besides its own metrics.jsonl.

A tracker that fails is left out from then on; the run continues.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefine.errors import MissingDependencyError, RecipeError
from prefine.json_reading import read_json_object
from prefine.recipe.stage import StageRecipe
from prefine.runs.directory import RunDirectory, read_metrics
from prefine.runs.ownership import TRACKERS_NAME
from prefine.training.display import Display

_OFFLINE = {"wandb": "Run wandb login, or set WANDB_MODE=offline, which needs no account"}
_MLFLOW_BATCH = 100  # the most parameters that it accepts at once
_NOT_OF_MLFLOW = re.compile(r"[^\w\-. /]")  # characters that its metric names may not have on every system
# Names of the per-row results in evaluation.json, for DPO, SFT and PPO.
_ROWS_OF_STAGES = ("pairs", "rows", "responses")

Table = Sequence[Mapping[str, Any]]
"""Rows with the same columns."""


def require_trackers(recipe: StageRecipe) -> None:
    """Raise MissingDependencyError if a tracker's package is not installed."""
    for name in recipe.training.trackers:
        if importlib.util.find_spec(name) is None:
            raise MissingDependencyError(
                f"{name} is not installed", f"Run: pip install {name}; or leave it out.", field="training.trackers"
            )


def tracked_name(run: str) -> str:
    """A run's name in trackers: its folder, without `runs/`; of an absolute path the last part."""
    path = Path(run)
    return path.name if path.is_absolute() else path.as_posix().removeprefix("runs/")


class Tracker(ABC):
    """One tracker of one run. Whatever its methods raise is the tracker's own."""

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics of a step. Steps may repeat, and go back after a guard's roll-back."""

    @abstractmethod
    def show(self, name: str, rows: Table, step: int) -> None:
        """Show rows, and the distribution of their numbers."""

    @abstractmethod
    def close(self) -> None:
        """Finish: nothing more will be logged."""


class Trackers:
    """All trackers of a run; none by default.

    Args:
        trackers: by name.
        display: shows a warning if a tracker fails.
    """

    def __init__(self, trackers: Mapping[str, Tracker] | None = None, display: Display | None = None) -> None:
        self._trackers = dict(trackers or {})
        self._display = display

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See Tracker."""
        self._each(lambda tracker: tracker.log(values, step))

    def show(self, name: str, rows: Table, step: int) -> None:
        """See Tracker."""
        if rows:
            self._each(lambda tracker: tracker.show(name, rows, step))

    def close(self) -> None:
        """See Tracker."""
        self._each(lambda tracker: tracker.close())
        self._trackers = {}

    def _each(self, do: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                do(tracker)
            except Exception as error:  # noqa: BLE001 - a tracker's failure must not end the run
                del self._trackers[name]
                with suppress(Exception):  # otherwise the next run of this process would continue this one's
                    tracker.close()
                if self._display is not None:
                    self._display.say(f"warning: {name} failed and is left out from now on: {_in_words(error)}")


def start_trackers(recipe: StageRecipe, stage: str, run_id: str, resumed: bool, display: Display) -> Trackers:
    """Start the trackers that a recipe names. Main process only.

    Raises:
        RecipeError: one cannot be started.
    """
    started: dict[str, Tracker] = {}
    for name in recipe.training.trackers:
        try:
            started[name] = _KINDS[name](recipe, stage, run_id, resumed)
        except Exception as error:
            Trackers(started).close()
            raise RecipeError(
                f"{name} could not be started: {_in_words(error)}",
                _OFFLINE.get(name, f"Set {name} up") + ", or leave it out.",
                field="training.trackers",
            ) from error
    return Trackers(started, display)


def show_results(run: RunDirectory, trackers: Trackers, step: int) -> None:
    """Show a finished run's samples before and after, and its results per held-out row, if its stage has them."""
    if run.samples.exists():
        trackers.show("samples", read_metrics(run.samples), step)
    heldout = read_json_object(run.evaluation).get("heldout") or {}
    for part in _ROWS_OF_STAGES:
        trackers.show(f"heldout_{part}", heldout.get(part) or (), step)


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".replace("\n", " ")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted names; lists and nulls as JSON, for trackers that only filter by single values."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return found


def _configuration(recipe: StageRecipe, stage: str) -> dict[str, Any]:
    return {"stage": stage, **recipe.model_dump(mode="json")}


def _numbers(rows: Table) -> dict[str, list[float]]:
    """The numeric columns, without missing values."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                columns.setdefault(name, []).append(float(value))
    return columns


def _text(value: Any) -> str:
    """A cell as text: a conversation as its turns."""
    if isinstance(value, list) and all(isinstance(turn, dict) and "content" in turn for turn in value):
        return "\n".join(f"{turn.get('role')}: {turn['content']}" for turn in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class Wandb(Tracker):
    """Weights & Biases; the recipe is its nested configuration, samples are tables, their numbers histograms."""

    def __init__(self, recipe: StageRecipe, stage: str, run_id: str, resumed: bool) -> None:
        # wandb reports its own errors to its vendor, even offline; users who want that can set this to true.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._wandb = wandb
        folder = Path(recipe.run) / TRACKERS_NAME
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=recipe.training.tracker_project,
            name=tracked_name(recipe.run),
            id=run_id,
            resume="allow" if resumed else None,
            job_type=stage,
            config=_configuration(recipe, stage),
            dir=str(folder),
            settings=wandb.Settings(console="off"),  # a run has one console output, its display
        )
        # Our own step metric: wandb's step cannot go back, but a guard or a resume may go back.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See Tracker."""
        self._run.log({**values, "step": step})

    def show(self, name: str, rows: Table, step: int) -> None:
        """See Tracker."""
        columns: list[str | int] = [*rows[0]]
        cells = [[_cell(row.get(str(column))) for column in columns] for row in rows]
        shown: dict[str, Any] = {name: self._wandb.Table(columns=columns, data=cells, allow_mixed_types=True)}
        shown |= {f"{name}/{column}": self._wandb.Histogram(values) for column, values in _numbers(rows).items()}
        self._run.log({**shown, "step": step})

    def close(self) -> None:
        """See Tracker."""
        self._run.finish()


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float) else _text(value)


class Tensorboard(Tracker):
    """TensorBoard; the recipe's fields are hyperparameters, samples are texts, their numbers histograms."""

    def __init__(self, recipe: StageRecipe, stage: str, run_id: str, resumed: bool) -> None:
        from torch.utils import tensorboard

        library: Any = tensorboard  # it has no types
        writer = library.SummaryWriter(str(Path(recipe.run) / TRACKERS_NAME))
        fields = flat(_configuration(recipe, stage))
        # The metric is only named here; its values are the scalars with this name.
        for summary in library.summary.hparams(fields, {"heldout/loss": 0.0}):
            writer.file_writer.add_summary(summary)
        self._writer = writer
        writer.add_text("recipe", _as_code(json.dumps(_configuration(recipe, stage), indent=2)))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See Tracker."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def show(self, name: str, rows: Table, step: int) -> None:
        """See Tracker."""
        for number, row in enumerate(rows, start=1):
            texts = {column: _text(value) for column, value in row.items() if isinstance(value, str | list)}
            page = "\n\n".join(f"**{column}**\n\n{_as_code(text)}" for column, text in texts.items())
            self._writer.add_text(f"{name}/{number}", page, step)
        for column, values in _numbers(rows).items():
            self._writer.add_histogram(f"{name}/{column}", _array(values), step)
        self._writer.flush()

    def close(self) -> None:
        """See Tracker."""
        self._writer.close()


def _as_code(text: str) -> str:
    """Text as a Markdown code block."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def _array(values: Sequence[float]) -> Any:
    import numpy

    return numpy.asarray(values)


class Trackio(Tracker):
    """trackio; gets metrics, with the recipe as its nested configuration."""

    def __init__(self, recipe: StageRecipe, stage: str, run_id: str, resumed: bool) -> None:
        library: Any = importlib.import_module("trackio")
        self._run = library.init(
            project=recipe.training.tracker_project,
            name=tracked_name(recipe.run),
            config=_configuration(recipe, stage),
            resume="allow" if resumed else "never",
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See Tracker."""
        self._run.log(dict(values), step=step)

    def show(self, name: str, rows: Table, step: int) -> None:
        """Does nothing: trackio has no tables."""

    def close(self) -> None:
        """See Tracker."""
        self._run.finish()


class Mlflow(Tracker):
    """MLflow; the recipe's fields are parameters, samples are tables among the run's artifacts."""

    def __init__(self, recipe: StageRecipe, stage: str, run_id: str, resumed: bool) -> None:
        self._library: Any = importlib.import_module("mlflow")
        self._library.set_experiment(recipe.training.tracker_project)
        self._run = self._library.start_run(run_name=tracked_name(recipe.run), tags={"prefine.run_id": run_id})
        fields = list(flat(_configuration(recipe, stage)).items())
        for at in range(0, len(fields), _MLFLOW_BATCH):
            self._library.log_params(dict(fields[at : at + _MLFLOW_BATCH]))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See Tracker."""
        self._library.log_metrics({_NOT_OF_MLFLOW.sub("_", name): value for name, value in values.items()}, step=step)

    def show(self, name: str, rows: Table, step: int) -> None:
        """See Tracker."""
        columns = {column: [_cell(row.get(column)) for row in rows] for column in rows[0]}
        self._library.log_table(columns, artifact_file=f"{name}.json")

    def close(self) -> None:
        """See Tracker."""
        self._library.end_run()


_KINDS: Mapping[str, Callable[[StageRecipe, str, str, bool], Tracker]] = {
    "wandb": Wandb,
    "tensorboard": Tensorboard,
    "trackio": Trackio,
    "mlflow": Mlflow,
}
