"""The remaining time of a pass, and the line that shows it on a terminal of any width."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from rich.progress import ProgressColumn, Task
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

# The mean over recent steps only: early ones are slower (compilation, allocation), and PPO's answers get longer.
_MOMENTS = 30
_LEAST_BAR, _WIDEST_BAR = 6, 30
_GAP = "  "


class Pace:
    """Predicts when a pass ends from its recent speed.

    Args:
        total: units of the whole pass.
        done: units that were done before; they do not count for the speed.
        clock: seconds, monotonic.
    """

    def __init__(self, total: int, done: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self._clock = clock
        self._moments: deque[tuple[float, int]] = deque([(clock(), done)], maxlen=_MOMENTS)

    def reached(self, done: int) -> None:
        """Record that `done` units are done; fewer than before after a guard's roll-back."""
        if done < self._moments[-1][1]:
            self._moments.clear()
        self._moments.append((self._clock(), done))

    def seconds_left(self) -> float | None:
        """Seconds until the end, from now; None before anything is done."""
        (began, first), (latest, last) = self._moments[0], self._moments[-1]
        if last == first:
            return None
        left = (latest - began) / (last - first) * (self.total - last)
        return max(0.0, left - (self._clock() - latest))


def clock_time(seconds: float | None) -> str:
    """As 1:02:03; dashes if unknown."""
    if seconds is None:
        return "-:--:--"
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


class BarLine(ProgressColumn):
    """One line that never exceeds the terminal: name, step, first fact, time left; then a bar and whatever else fits.

    A task's field `facts` holds the facts, the most important first, and `pace` its Pace.
    """

    def __init__(self, width: Callable[[], int]) -> None:
        super().__init__()
        self._width = width

    def render(self, task: Task) -> Table:
        """See ProgressColumn."""
        facts: Sequence[str] = task.fields["facts"]
        first, rest = facts[:1], facts[1:]
        left = clock_time(task.fields["pace"].seconds_left())
        head = _GAP.join([task.description, f"{task.completed:,.0f}/{task.total:,.0f}", *first, f"left {left}"])
        room = self._width() - len(head) - len(_GAP)
        shown = ""
        # A short bar comes before further facts, but facts come before a long bar.
        for fact in rest:
            if len(shown) + len(_GAP) + len(fact) + _LEAST_BAR + len(_GAP) <= room:
                shown += _GAP + fact
        line = Table.grid(padding=(0, len(_GAP), 0, 0))
        parts: list[Text | ProgressBar] = [Text(head, no_wrap=True, overflow="ellipsis")]
        bar = min(_WIDEST_BAR, room - len(shown))
        if bar >= _LEAST_BAR:
            parts.append(ProgressBar(total=task.total, completed=task.completed, width=bar))
        if shown:
            parts.append(Text(shown.strip(), no_wrap=True))
        line.add_row(*parts)
        return line
