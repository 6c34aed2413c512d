"""What the loop asks of a stage, so that it need not know any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from prefine.data.batch import TokenTree


class LoopStage(Protocol):
    """A stage, as the loop knows it."""

    def one_step(self, loop: Any, trees: Sequence[TokenTree]) -> dict[str, float]:
        """One step on these trees: calls `loop.optimise`; gives the step's metrics."""

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Whatever else the next step depends on: groups of tensors, and what JSON holds."""

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""

    def rolled_back(self) -> dict[str, Any]:
        """Go more gently after a guard's roll-back; says what has been changed."""
