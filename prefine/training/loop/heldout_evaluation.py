"""Evaluation of the model on held-out rows during training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from prefine.errors import NotFiniteError
from prefine.training.loop.run_log import RunLog
from prefine.training.loop.state import TrainingState


@dataclass
class HeldoutEvaluation:
    """Evaluates the current model.

    Args:
        model: the packed model, as accelerate prepared it.
        metrics: returns the objective's held-out metrics, including `loss`; called with the model in eval mode. None
            if no rows are held out.
        state: the run's training state.
        log: where metrics are reported.

    Attributes:
        done: whether this process has evaluated, so that the objective holds its results of held-out rows.
    """

    model: nn.Module
    metrics: Callable[[], dict[str, float]] | None
    state: TrainingState
    log: RunLog
    done: bool = False

    def run(self) -> dict[str, float] | None:
        """Compute and report the metrics; None if no rows are held out.

        Raises:
            NotFiniteError: a metric is not finite.
        """
        if self.metrics is None:
            return None
        step = self.state.position.step
        self.model.eval()
        try:
            row = self.metrics()
        finally:
            self.model.train()
        self.done = True
        if not all(map(math.isfinite, row.values())):
            raise NotFiniteError(
                f"held-out metrics are not finite after step {step}: {row}",
                "Look for extreme held-out rows, lower training.learning_rate, or set model.dtype to float32.",
            )
        # Each process evaluates by itself. The last bits may differ between them, but decisions must not.
        row = self.state.processes.from_main(row)
        self.state.early_stopping.update(step, row["loss"], self.state.parameters)
        self.log.heldout(step, row, self.state.objective.heldout_details)
        return row

    def remember(self) -> None:
        """Evaluate without reporting, so that the objective holds results of the current weights.

        All processes must call it: an evaluation may gather from all of them.
        """
        if self.metrics is not None:
            self.model.eval()
            self.metrics()
            self.done = True

    @property
    def missing(self) -> bool:
        """Whether the metrics of the current step have not been reported yet. All processes must call it."""
        if self.metrics is None:
            return False
        return self.state.processes.from_main(not self.log.has_evaluation(self.state.position.step))
