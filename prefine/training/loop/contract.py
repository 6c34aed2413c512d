"""Protocols between the training loop and an objective."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor, nn

from prefine.data.tokens.trees import PackedBatch, TokenTree
from prefine.training.loop.processes import Processes
from prefine.training.tracking.tracker import Details

Unit = Literal["trees", "tokens"]


@dataclass(frozen=True)
class Sums:
    """A loss and other figures, summed over one microbatch.

    The loop turns sums into means: it divides by the number of units in the whole optimiser step, over all
    microbatches and processes. So the step does not depend on how its rows are split.

    Attributes:
        loss: scalar, with gradient.
        per: the unit of the means: token trees (pairs, demonstrations) or supervised tokens.
        logged: other figures to log, by name.
    """

    loss: Tensor
    per: Unit
    logged: Mapping[str, float] = field(default_factory=dict)


class Loss(Protocol):
    """An objective's loss on one microbatch."""

    def __call__(self, model: nn.Module, batch: PackedBatch) -> Sums: ...


class State(NamedTuple):
    """The state of one object, as a checkpoint stores it.

    Attributes:
        tensors: groups of tensors; a group becomes one file.
        json: values that JSON represents exactly: string keys, no tuples.
    """

    tensors: dict[str, dict[str, Tensor]]
    json: dict[str, Any]


class Stateful(Protocol):
    """An object whose state is part of a checkpoint."""

    def state(self) -> State:
        """The current state. Its tensors may be the object's own: save them before the next step."""

    def load_state(self, state: State) -> None:
        """Restore a value of `state`."""


class Steps(Protocol):
    """The loop, as an objective uses it while it takes a step."""

    @property
    def number(self) -> int:
        """Number of the current step, from 0."""

    @property
    def processes(self) -> Processes:
        """The processes that take the step together."""

    def optimise(self, trees: Sequence[TokenTree], learning: Collection[str] | None = None) -> dict[str, float]:
        """Take one optimiser step on these trees; returns means by name. See OptimiserStep."""

    def safe_point(self) -> None:
        """Save and stop here if that was requested. Called between the optimiser steps of one step.

        Raises:
            Stopped: a stop was requested.
        """


class LoopObjective(Stateful, Protocol):
    """An objective, as the loop uses it. Its state is all that its next step depends on besides the model."""

    def loss(self, model: nn.Module, batch: PackedBatch) -> Sums:
        """See Loss."""

    def step(self, steps: Steps, trees: Sequence[TokenTree]) -> dict[str, float]:
        """Take one step on these trees with `steps.optimise`; returns the step's metrics."""

    def rolled_back(self) -> dict[str, float]:
        """Adapt to a guard's roll-back, for more careful steps; returns the new values of what changed, by name."""

    def evaluate(self) -> dict[str, float]:
        """Mean held-out metrics of the current model, including `loss`; called in eval mode."""

    def step_details(self) -> Details:
        """What trackers show of the last step besides its metrics."""

    def heldout_details(self) -> Details:
        """What trackers show of the last evaluation besides its metrics."""
