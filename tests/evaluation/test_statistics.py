from __future__ import annotations

import math

import pytest

from prefine.evaluation.statistics import Share, mean, median


# Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3.
@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_are_the_published_ones(hits: int, count: int, low: float, high: float) -> None:
    interval = Share(hits / count, count).interval
    assert interval is not None
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


def test_a_share_of_an_unknown_number_has_no_interval() -> None:
    assert Share(0.5, None).interval is None
    assert Share(0.5, 0).interval is None
    assert Share(0.5, 0).hits is None


def test_hits_are_told_only_where_they_are_whole() -> None:
    assert Share(0.8620689511299133, 29).hits == 25  # a float32 mean
    assert Share(0.25, 29).hits is None


def test_mean_interval_is_students() -> None:
    found = mean([1, 2, 3, 4, 5])
    assert found is not None
    assert found.interval is not None
    half = 2.7764 * math.sqrt(2.5 / 5)  # t(0.975, 4) times the standard error
    assert (found.value, found.count) == (3, 5)
    assert found.interval.low == pytest.approx(3 - half, abs=1e-3)
    assert found.interval.high == pytest.approx(3 + half, abs=1e-3)


def test_too_few_or_equal_values_have_no_interval() -> None:
    for values in ([2.0], [2.0, 2.0, 2.0]):
        found = mean(values)
        assert found is not None
        assert (found.value, found.interval) == (2.0, None)
    assert mean([]) is None
    assert mean([math.nan]) is None


def test_median() -> None:
    assert median([3, 1, 2]) == 2
    assert median([4, 1, 2, 3]) == 2.5
    assert median([]) is None
