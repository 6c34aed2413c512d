"""Other programs on the same cores: a step waits for its slowest thread, so a neighbour costs more than its share."""

from __future__ import annotations

import time

import psutil

_SECONDS_LOOKED_AT = 20.0
# Short-lived work and the system's own, which cost nothing that a user would notice.
_CORES_OF_SLACK = 0.5
_IDLE = ("idle", "iowait", "guest", "guest_nice")  # guests' time is in user's as well


class Neighbours:
    """Looks at the machine's processor time every 20 seconds, and warns once if others take cores that a run wants."""

    def __init__(self) -> None:
        self._warned = False
        self._begin()

    def warning(self, threads: int) -> str | None:
        """What to say now, once in a run; else None.

        Args:
            threads: of this process that compute together.
        """
        elapsed = time.monotonic() - self._began
        if self._warned or elapsed < _SECONDS_LOOKED_AT:
            return None
        others = max(0.0, _busy_seconds() - self._busy - (time.process_time() - self._own)) / elapsed
        cores = psutil.cpu_count() or 1
        self._begin()
        if threads + others <= cores + _CORES_OF_SLACK:
            return None
        self._warned = True
        fewer = max(1, int(cores - others))
        hint = f" or set OMP_NUM_THREADS={fewer}" if fewer < threads else ""
        return (
            f"other programs keep {others:.1f} of {cores} cores busy, and this run computes with {threads}: steps can "
            f"take several times as long. Stop them{hint}."
        )

    def _begin(self) -> None:
        self._began, self._busy, self._own = time.monotonic(), _busy_seconds(), time.process_time()


def _busy_seconds() -> float:
    """Seconds that all cores of the machine have worked, for whomever, since it started."""
    times = psutil.cpu_times()._asdict()
    return float(sum(value for name, value in times.items() if name not in _IDLE))
