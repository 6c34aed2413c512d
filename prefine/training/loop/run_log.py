"""Reports a run's metrics: to metrics.jsonl, the display and experiment trackers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prefine.runs.atomic import JSON
from prefine.runs.directory import MetricsLog, RunDirectory, drop_rows_after, rows_of_kind
from prefine.training.display import Display
from prefine.training.tracking.rolling import Rolling
from prefine.training.tracking.tracker import Details
from prefine.training.tracking.trackers import Trackers


class RunLog:
    """Reports the metrics of a run.

    Args:
        run: the run's folder.
        display: shows them to the user.
        trackers: experiment trackers; empty in all processes but the main one.
        is_main: whether this process writes metrics.jsonl.

    Attributes:
        display: see above.
    """

    def __init__(self, run: RunDirectory, display: Display, trackers: Trackers, *, is_main: bool) -> None:
        self._run = run
        self.display = display
        self._trackers = trackers
        self._rolling = Rolling()
        # One writer only: a second process that truncates the file on resuming would leave this one with a lost file.
        self._metrics = MetricsLog(run.metrics) if is_main else None

    def say(self, text: str) -> None:
        """Show the user a line."""
        self.display.say(text)

    def train(self, step: int, epoch: float, row: Mapping[str, float], details: Callable[[], Details]) -> None:
        """Report a step's metrics.

        Args:
            details: returns what trackers show besides; called only if there are any.
        """
        figures = {"epoch": epoch, **row}
        self._append("train", step, figures)
        self.display.step(step, figures)
        if self._trackers:
            self._trackers.log({**row, **self._rolling.after(row)}, step)
            self._trackers.details("rollouts", details(), step)

    def heldout(self, step: int, row: Mapping[str, float], details: Callable[[], Details]) -> None:
        """Report an evaluation's metrics.

        Args:
            details: see train.
        """
        self._append("heldout", step, row)
        self.display.heldout(step, row)
        if self._trackers:
            self._trackers.log({f"heldout/{name}": value for name, value in row.items()}, step)
            self._trackers.details("heldout_rows", details(), step)

    def guard(self, step: int, event: Mapping[str, Any]) -> None:
        """Write a guard's event to metrics.jsonl; Rollback shows it to the user."""
        self._append("guard", step, event)

    def has_evaluation(self, step: int) -> bool:
        """Whether the evaluation after this step has been reported."""
        return step in [row["step"] for row in rows_of_kind(self._run.metrics, "heldout")]

    def seal(self, step: int) -> dict[str, JSON]:
        """Flush the metrics to disk; returns their hash up to a step, for its checkpoint. Main process only."""
        assert self._metrics is not None  # noqa: S101
        self._metrics.sync()
        return self._metrics.seal(step)

    def mend(self, seal: Mapping[str, Any]) -> None:
        """Warn if lines covered by a checkpoint's hash were lost or changed; restore its held-out metrics."""
        if self._metrics is not None and self._metrics.mend(seal):
            self.say(
                f"warning: {self._run.metrics} lost lines or was changed: held-out metrics are restored from the "
                "checkpoint, lost metrics of steps are not"
            )

    def cut_after(self, step: int, events: Sequence[Mapping[str, Any]]) -> None:
        """Drop the rows of later steps, which will be repeated.

        Args:
            events: all events of guards so far; those whose rows were dropped are written again.
        """
        if self._metrics is None:
            return
        self._metrics.truncate_after(step)
        drop_rows_after(self._run.rollouts, step)
        self._rolling = Rolling(rows_of_kind(self._run.metrics, "train"))
        written = len(rows_of_kind(self._run.metrics, "guard"))
        for event in events[written:]:
            self.guard(step, event)

    def close(self) -> None:
        """Close metrics.jsonl."""
        if self._metrics is not None:
            self._metrics.close()

    def _append(self, kind: str, step: int, row: Mapping[str, Any]) -> None:
        if self._metrics is not None:
            self._metrics.append({"kind": kind, "step": step, **row})
