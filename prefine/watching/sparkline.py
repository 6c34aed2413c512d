"""Values as a small plot of text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prefine.report.plots import thinned

_BLOCKS = " ▁▂▃▄▅▆▇█"
_ASCII = " .:-=+*#@"


def sparkline(values: Sequence[float], width: int, height: int = 1, *, ascii_only: bool = False) -> list[str]:
    """Values over a range from their lowest to their highest, as lines of text, the top one first.

    More values than columns are averaged; NaN leaves a gap. The lowest value is still visible.

    Args:
        width: the most columns.
        height: lines of text.
        ascii_only: whether to use no block characters.
    """
    _, columns = thinned(range(len(values)), values, max(1, width))
    finite = [value for value in columns if math.isfinite(value)]
    if not finite:
        return [" " * len(columns)] * height
    low, high = min(finite), max(finite)
    steps = 8 * height
    marks = _ASCII if ascii_only else _BLOCKS
    # A constant is drawn at half height.
    sizes = [
        0
        if not math.isfinite(value)
        else steps // 2
        if low == high
        else 1 + round((value - low) / (high - low) * (steps - 1))
        for value in columns
    ]
    return ["".join(marks[min(8, max(0, size - 8 * row))] for size in sizes) for row in reversed(range(height))]
