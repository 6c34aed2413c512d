"""How sure a number from few examples can be: 95 % intervals. scipy does the arithmetic; it is imported on use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % confidence interval."""

    low: float
    high: float

    @property
    def width(self) -> float:
        """From end to end."""
        return self.high - self.low

    def contains(self, value: float) -> bool:
        """Whether `value` lies inside, ends included."""
        return self.low <= value <= self.high

    def overlaps(self, other: Interval) -> bool:
        """Whether some value lies in both."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True, slots=True)
class Share:
    """A share of `count` examples, as a fraction.

    Attributes:
        value: between 0 and 1.
        count: of how many examples; None if nobody recorded it, and then there is no interval.
    """

    value: float
    count: int | None

    @property
    def hits(self) -> int | None:
        """How many of `count`; None if that is no whole number (ties counted as halves, say)."""
        if not self.count:
            return None
        hits = round(self.value * self.count)
        return hits if math.isclose(hits, self.value * self.count, abs_tol=1e-3) else None

    @property
    def interval(self) -> Interval | None:
        """Wilson's score interval (JASA 22, 1927): unlike the textbook one it holds for few examples and near 0 and 1.

        Halves are rounded to the nearest whole hit.
        """
        if not self.count or not 0 <= self.value <= 1:
            return None
        from scipy.stats import binomtest

        found = binomtest(round(self.value * self.count), self.count).proportion_ci(CONFIDENCE, method="wilson")
        return Interval(float(found.low), float(found.high))


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of `count` independent values."""

    value: float
    count: int
    interval: Interval | None


def mean(values: Sequence[float]) -> Mean | None:
    """The mean and its interval by Student's t (Biometrika 6, 1908); of paired differences, the paired interval.

    None without values. No interval from fewer than two values, or from values that do not differ at all: these say
    nothing about how far the next one may lie.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    centre = math.fsum(finite) / len(finite)
    if len(finite) < 2 or max(finite) == min(finite):
        return Mean(centre, len(finite), None)
    from scipy.stats import sem, t

    low, high = t.interval(CONFIDENCE, len(finite) - 1, loc=centre, scale=sem(finite))
    return Mean(centre, len(finite), Interval(float(low), float(high)))


def correlation(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, Interval] | None:
    """Spearman's rank correlation with its interval by Fisher's transformation; None if one side does not vary."""
    from scipy.stats import pearsonr, rankdata

    if len(xs) < 4 or min(xs) == max(xs) or min(ys) == max(ys):
        return None
    found = pearsonr(rankdata(xs), rankdata(ys))
    interval = found.confidence_interval(CONFIDENCE)
    return float(found.statistic), Interval(float(interval.low), float(interval.high))


def median(values: Sequence[float]) -> float | None:
    """The middle value, None without values."""
    ordered = sorted(values)
    if not ordered:
        return None
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def median_change(before: Sequence[float], after: Sequence[float]) -> Mean | None:
    """How much the median of paired values has changed, with a bootstrap interval over pairs (Efron 1979).

    None without pairs; no interval from fewer than two.
    """
    was, now = median(before), median(after)
    if was is None or now is None:
        return None
    change = now - was
    if len(before) < 2:
        return Mean(change, len(before), None)
    import numpy as np
    from scipy.stats import bootstrap

    def statistic(x: Any, y: Any, axis: int) -> Any:
        return np.median(y, axis=axis) - np.median(x, axis=axis)

    found = bootstrap(
        (before, after), statistic, paired=True, method="percentile", confidence_level=CONFIDENCE, rng=0
    ).confidence_interval
    return Mean(change, len(before), Interval(float(found.low), float(found.high)))


def evenly_chosen(count: int, most: int) -> Sequence[int]:
    """At most `most` of range(count), at even distances, the first and the last among them."""
    return range(count) if count <= most else [place * (count - 1) // max(1, most - 1) for place in range(most)]
