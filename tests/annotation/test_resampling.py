from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t

from prefine.annotation.resampling import bootstrap_intervals


def means(sums: np.ndarray) -> np.ndarray:
    return sums[:, :1] / sums[:, 1:]


def test_the_interval_of_a_mean_is_nearly_students() -> None:
    values = np.random.default_rng(5).normal(3, 2, 40)
    (found,) = bootstrap_intervals(np.column_stack([values, np.ones(40)]), means)
    low, high = t.interval(0.95, 39, loc=values.mean(), scale=values.std(ddof=1) / np.sqrt(40))
    assert found is not None
    assert found.low == pytest.approx(low, abs=0.08)
    assert found.high == pytest.approx(high, abs=0.08)


def test_equal_items_are_drawn_together_to_the_same_effect() -> None:
    few = np.tile([[1.0, 1.0], [0.0, 1.0], [0.0, 1.0]], (1_000, 1))
    (found,) = bootstrap_intervals(few, means)
    assert found is not None
    half = 1.96 * np.sqrt(2 / 9 / 3_000)
    assert (found.low, found.high) == pytest.approx((1 / 3 - half, 1 / 3 + half), abs=0.003)


def test_there_is_no_interval_of_too_few_of_equal_or_of_undefined_values() -> None:
    varied = np.column_stack([np.arange(6.0), np.ones(6)])
    assert bootstrap_intervals(varied[:5], means) == [None]
    assert bootstrap_intervals(varied, means) != [None]
    assert bootstrap_intervals(np.ones((9, 2)), means) == [None]
    first, second = bootstrap_intervals(
        varied, lambda sums: np.column_stack([sums[:, 0], np.where(sums[:, 0] > 16, np.nan, sums[:, 0])])
    )
    assert first is not None
    assert second is None
