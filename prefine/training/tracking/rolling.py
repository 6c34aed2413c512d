"""Means over the last steps, for trackers: single steps of reinforcement learning are noisy."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

ROLLING_STEPS = 20
_NAMES = ("loss", "score", "reward", "kl_k1", "entropy", "degenerate_count")


class Rolling:
    """Means of some metrics over the last logged steps.

    Args:
        rows: metrics of earlier steps, oldest first: those of a run that goes on.
        steps: the most steps that a mean is over.
    """

    def __init__(self, rows: Iterable[Mapping[str, float | None]] = (), steps: int = ROLLING_STEPS) -> None:
        self._seen = {name: deque[float](maxlen=steps) for name in _NAMES}
        for row in rows:
            self._see(row)

    def after(self, row: Mapping[str, float]) -> dict[str, float]:
        """The means after a further step, named `rolling/METRIC`, of the metrics that this step has."""
        self._see(row)
        return {f"rolling/{name}": sum(seen) / len(seen) for name, seen in self._seen.items() if seen and name in row}

    def _see(self, row: Mapping[str, float | None]) -> None:
        for name, seen in self._seen.items():
            if (value := row.get(name)) is not None:  # None: it was not finite, see MetricsLog
                seen.append(value)
