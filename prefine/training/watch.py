"""Watches the held-out loss: keeps the best weights and says when to stop (early stopping; Prechelt 1998)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prefine.atomic import JSON
from prefine.recipe import TrainingSection


class HeldoutWatch:
    """Sees each evaluation once, in order. All of it is saved with a checkpoint, the best weights included.

    Args:
        section: the recipe's training section: keep_best, early_stopping_patience.

    Attributes:
        best_step: the step of the lowest held-out loss so far; None before the first evaluation.
        best_loss: that loss.
        worse: evaluations since then.
        best_weights: trainable weights of that step, on the CPU; empty where they are not kept.
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
        """Whether the loss has not fallen for so long that training should stop."""
        return self._patience is not None and self.worse >= self._patience

    def see(self, step: int, loss: float, parameters: Mapping[str, nn.Parameter]) -> None:
        """One evaluation; equal losses count as no improvement."""
        if loss < self.best_loss:
            self.best_step, self.best_loss, self.worse = step, loss, 0
            if self._keeps:
                self.best_weights = {name: p.detach().cpu().clone() for name, p in parameters.items()}
        else:
            self.worse += 1

    @torch.no_grad()
    def put_back(self, step: int, parameters: Mapping[str, nn.Parameter]) -> bool:
        """Give the parameters their best values, if they are kept and are not those of `step`; says whether it did."""
        if not self.best_weights or self.best_step == step:
            return False
        for name, parameter in parameters.items():
            parameter.copy_(self.best_weights[name])
        return True

    def state(self) -> dict[str, JSON]:
        """What a checkpoint's JSON holds of it; `best_weights` go into a group of tensors."""
        return {"best_step": self.best_step, "best_loss": self.best_loss, "worse": self.worse}

    def restore(self, state: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Put back what a checkpoint holds."""
        self.best_step, self.best_loss, self.worse = state["best_step"], state["best_loss"], state["worse"]
        self.best_weights = dict(weights)
