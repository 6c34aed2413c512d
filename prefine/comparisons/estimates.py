"""Figures with their intervals, as a comparison's result has them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prefine.comparisons.result import Estimate
from prefine.intervals import Interval, Share, median
from prefine.significance import Change, interval_of_mean, interval_of_median


def estimate(values: Sequence[float], is_share: bool) -> Estimate | None:
    """The mean of one model's values with its interval (a share's is Wilson's); None without values."""
    if not values:
        return None
    value = math.fsum(values) / len(values)
    interval = Share(value, len(values)).interval if is_share else interval_of_mean(values)
    return _with_interval(value, interval, len(values))


def estimate_of_median(values: Sequence[float]) -> Estimate | None:
    """The median of one model's values with its interval; None without values."""
    centre = median(values)
    return None if centre is None else _with_interval(centre, interval_of_median(values), len(values))


def estimate_of_change(change: Change) -> Estimate:
    """A change as the result has it."""
    return _with_interval(change.value, change.interval, change.count)


def finite_or_none(value: float | None) -> float | None:
    """None instead of NaN and infinities, of a model that diverged: such a value is missing, and JSON has none."""
    return None if value is None or not math.isfinite(value) else value


def interval_of(estimate: Estimate | None) -> Interval | None:
    """An estimate's interval."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return None
    return Interval(estimate.low, estimate.high)


def _with_interval(value: float, interval: Interval | None, count: int) -> Estimate:
    low, high = (interval.low, interval.high) if interval else (None, None)
    return Estimate(value=value, low=low, high=high, count=count)
