"""The self-check of a run's first optimiser step: the trained policy is the one that was measured."""

from __future__ import annotations

from collections.abc import Sequence

from prefine.data.tokens.trees import TokenTree
from prefine.runs.atomic import JSON
from prefine.training.loop.processes import Processes
from prefine.training.rl.measure import repeatability
from prefine.training.rl.policy import Policy
from prefine.training.run.checks import check_first_ratio, require


class FirstRatio:
    """Checks once per run that pi / pi_old is 1 for every token of the first optimiser step.

    Args:
        processes: the processes that train together.
        enabled: whether self-checks are on.

    Attributes:
        done: whether the run has taken its first optimiser step.
    """

    def __init__(self, processes: Processes, *, enabled: bool) -> None:
        self._processes = processes
        self._enabled = enabled
        self._repeated = 0.0
        self.done = False

    def prepare(self, policy: Policy, trees: Sequence[TokenTree], max_tokens: int) -> None:
        """Measure how much a log-probability changes when it is computed again: ratios may differ from 1 by that much.

        Args:
            trees: this process's part of the first minibatch; may be empty.
        """
        if self.done or not self._enabled:
            return
        own = repeatability(policy, trees, max_tokens) if trees else 0.0
        self._repeated = max(self._processes.gather(own))

    def check(self, ratios: tuple[float, float]) -> list[dict[str, JSON]]:
        """Check the ratios of the first optimiser step; later calls check nothing.

        Args:
            ratios: smallest and largest of all tokens, over all processes.

        Returns: the check's row for the manifest; empty after the first step.

        Raises:
            TrainingError: a ratio is too far from 1.
        """
        first, self.done = not self.done, True
        if not (first and self._enabled):
            return []
        return require([check_first_ratio(max(abs(ratio - 1) for ratio in ratios), self._repeated)])
