"""Early stopping on the held-out loss, which keeps the best weights (Prechelt 1998)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prefine.recipe.sections import TrainingSection
from prefine.training.loop.contract import State

# Name of the tensor group with the best weights in a checkpoint.
_BEST = "best"


class EarlyStopping:
    """Counts evaluations without a lower held-out loss, and keeps the best weights if the recipe says so.

    Args:
        section: the recipe's training section: keep_best, early_stopping_patience.

    Attributes:
        best_step: the step of the lowest held-out loss so far; None before the first evaluation.
        best_loss: that loss.
        worse: evaluations since then.
        best_weights: trainable weights of that step, on the CPU; empty if they are not kept.
    """

    def __init__(self, section: TrainingSection) -> None:
        self.best_step: int | None = None
        self.best_loss = math.inf
        self.worse = 0
        self.best_weights: dict[str, Tensor] = {}
        self._keeps = section.keep_best
        self._patience = section.early_stopping_patience

    @property
    def exhausted(self) -> bool:
        """Whether the loss has not fallen for early_stopping_patience evaluations, so that training should stop."""
        return self._patience is not None and self.worse >= self._patience

    def update(self, step: int, loss: float, parameters: Mapping[str, nn.Parameter]) -> None:
        """Record one evaluation. An equal loss is not an improvement."""
        if loss < self.best_loss:
            self.best_step, self.best_loss, self.worse = step, loss, 0
            if self._keeps:
                self.best_weights = {name: p.detach().cpu().clone() for name, p in parameters.items()}
        else:
            self.worse += 1

    @torch.no_grad()
    def load_best(self, step: int, parameters: Mapping[str, nn.Parameter]) -> bool:
        """Set the parameters to their best values, if kept and not those of `step`; returns whether it did."""
        if not self.best_weights or self.best_step == step:
            return False
        for name, parameter in parameters.items():
            parameter.copy_(self.best_weights[name])
        return True

    def state(self) -> State:
        """See Stateful."""
        tensors = {_BEST: self.best_weights} if self.best_weights else {}
        return State(tensors, {"best_step": self.best_step, "best_loss": self.best_loss, "worse": self.worse})

    def load_state(self, state: State) -> None:
        """See Stateful."""
        json = state.json
        self.best_step, self.best_loss, self.worse = json["best_step"], json["best_loss"], json["worse"]
        self.best_weights = dict(state.tensors.get(_BEST, {}))
