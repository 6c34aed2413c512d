"""Protocols between the training loop and an objective: what each may ask of the other."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor, nn

from prefine.data.tokens.trees import PackedBatch, TokenTree
from prefine.training.loop.processes import Processes

Unit = Literal["trees", "tokens"]


@dataclass(frozen=True)
class Sums:
    """A loss and other figures, summed over one microbatch.

    The loop turns sums into means: it divides by the number of units in the whole optimiser step, over all
    microbatches and processes, so that the step does not depend on how its rows are split.

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
    """What a checkpoint stores of one object.

    Attributes:
        tensors: groups of tensors; a group becomes one file.
        json: what JSON represents exactly: string keys, no tuples.
    """

    tensors: dict[str, dict[str, Tensor]]
    json: dict[str, Any]


class Stateful(Protocol):
    """An object whose state belongs to a checkpoint."""

    def state(self) -> State:
        """The current state. Tensors may be the object's own: store them before the next step."""

    def load_state(self, state: State) -> None:
        """Return to a state that `state` gave."""


class Steps(Protocol):
    """What an objective may ask of the loop while it takes a step."""

    @property
    def number(self) -> int:
        """Number of the step that is being taken, from 0."""

    @property
    def processes(self) -> Processes:
        """The processes that take it together."""

    def optimise(self, trees: Sequence[TokenTree], learning: Collection[str] | None = None) -> dict[str, float]:
        """Take one optimiser step on these trees; gives means by name. See OptimiserStep."""

    def safe_point(self) -> None:
        """Called between the optimiser steps of one step: save and stop here if the run was asked to stop.

        Raises:
            Stopped: the run was asked to stop.
        """


class LoopObjective(Stateful, Protocol):
    """What the loop asks of an objective. Its state is all that its next step depends on besides the model."""

    def loss(self, model: nn.Module, batch: PackedBatch) -> Sums:
        """See Loss."""

    def step(self, steps: Steps, trees: Sequence[TokenTree]) -> dict[str, float]:
        """Take one step on these trees with `steps.optimise`; returns the step's metrics."""

    def rolled_back(self) -> dict[str, float]:
        """Go on more carefully after a guard's roll-back; returns the new values of what was changed, by name."""

    def evaluate(self) -> dict[str, float]:
        """Mean held-out metrics of the present model, `loss` among them; called in eval mode."""
