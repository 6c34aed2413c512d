"""Rounding of measured numbers."""

from __future__ import annotations

import math


def two_digits(value: float) -> str:
    """A ratio or a rate of at least 0 with two significant digits, as a whole number from 10 on: 0.034, 1.7, 12,
    1,234.
    """
    if not 0 < value < math.inf:
        return f"{value:g}"
    rounded = float(f"{value:.1e}") if value < 10 else value
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:.{1 - math.floor(math.log10(rounded))}f}"
