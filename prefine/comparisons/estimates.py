"""Figures with their intervals, as a comparison's result has them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prefine.comparisons.result import Estimate
from prefine.intervals import Interval, Share, mean
from prefine.significance import Change


def estimate(values: Sequence[float], is_share: bool) -> Estimate | None:
    """The mean of one model's values with its interval: Wilson's of a share, Student's of other values."""
    if is_share and values:
        share = Share(math.fsum(values) / len(values), len(values))
        interval = share.interval
        return Estimate(
            value=share.value,
            low=interval.low if interval else None,
            high=interval.high if interval else None,
            count=len(values),
        )
    found = mean(values)
    if found is None:
        return None
    low, high = (found.interval.low, found.interval.high) if found.interval else (None, None)
    return Estimate(value=found.value, low=low, high=high, count=found.count)


def estimate_of_change(change: Change) -> Estimate:
    """A change as the result has it."""
    low, high = (change.interval.low, change.interval.high) if change.interval else (None, None)
    return Estimate(value=change.value, low=low, high=high, count=change.count)


def interval_of(estimate: Estimate | None) -> Interval | None:
    """An estimate's interval."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return None
    return Interval(estimate.low, estimate.high)
