"""Intervals by a bootstrap over items. Votes on one item are not independent; items are."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

from prefine.intervals import CONFIDENCE, Interval

_FEWEST_ITEMS = 6
_RESAMPLES = 2_000
_VALUES_AT_ONCE = 5_000_000  # 40 MB
_MOST_UNDEFINED = 0.01  # share of resamples without a value, from which there is no interval


def bootstrap_intervals(
    items: Any, statistics: Callable[[Any], Any], resamples: int = _RESAMPLES
) -> list[Interval | None]:
    """The interval of each statistic of sums over items.

    An expanded percentile interval (Hesterberg 2015, The American Statistician 69, section 5.3): its ends are wider
    quantiles than 2.5 and 97.5 %, so that few items do not make it too narrow. The resamples are always the same.

    Args:
        items: (items, numbers), float: what each item adds to the sums.
        statistics: sums (resamples, numbers) -> values (resamples, statistics); NaN where undefined.

    Returns: one for each statistic: None for fewer than six items, for a statistic that does not vary, and for one
        that is undefined in more than one resample in a hundred.
    """
    import numpy as np
    from scipy.stats import t

    count = len(items)
    patterns, times = np.unique(items, axis=0, return_counts=True)  # few: drawing them is as good and much cheaper
    if count < _FEWEST_ITEMS:
        return [None] * np.asarray(statistics(items.sum(axis=0)[None])).shape[1]
    generator = np.random.default_rng(0)
    rows = max(1, _VALUES_AT_ONCE // max(patterns.shape))
    values = np.concatenate(
        [
            statistics(generator.multinomial(count, times / count, min(rows, resamples - done)) @ patterns)
            for done in range(0, resamples, rows)
        ]
    )
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * math.sqrt(count / (count - 1))
    tail = NormalDist().cdf(-quantile)
    return [_between(column, tail) for column in values.T]


def _between(values: Any, tail: float) -> Interval | None:
    import numpy as np

    defined = values[np.isfinite(values)]
    if len(values) - len(defined) > _MOST_UNDEFINED * len(values) or np.ptp(defined) == 0:
        return None
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Interval(float(low), float(high))
