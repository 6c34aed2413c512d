from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap, norm, spearmanr, t

from prefine.intervals import (
    Interval,
    Share,
    correlation,
    mean,
    mean_change,
    median,
    median_change,
    ratio_change,
)


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


def test_correlation_by_hand() -> None:
    """Ranks 1 2 3 4 5 against 2 1 4 3 5: 1 - 6 · 4 / (5 · 24) = 0.8; by Fisher tanh(atanh 0.8 ± 1.96 / √2)."""
    found = correlation([10, 20, 30, 40, 50], [0.2, 0.1, 0.4, 0.3, 900])
    assert found is not None
    value, interval = found
    half = norm.ppf(0.975) / math.sqrt(5 - 3)
    assert value == pytest.approx(0.8)
    assert interval.low == pytest.approx(math.tanh(math.atanh(0.8) - half))
    assert interval.high == pytest.approx(math.tanh(math.atanh(0.8) + half))


@pytest.mark.filterwarnings("error")
@given(st.lists(st.tuples(st.integers(-5, 5), st.floats(-1e3, 1e3)), min_size=4, max_size=40))
def test_correlation_is_spearmans_and_lies_in_its_interval(points: list[tuple[int, float]]) -> None:
    """Ties included; a side that does not vary has none."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    found = correlation(xs, ys)
    if len(set(xs)) == 1 or len(set(ys)) == 1:
        assert found is None
        return
    assert found is not None
    value, interval = found
    assert value == pytest.approx(spearmanr(xs, ys).statistic, abs=1e-9)
    assert -1 <= interval.low <= value + 1e-12
    assert value - 1e-12 <= interval.high <= 1


def test_values_in_one_order_or_the_opposite_correlate_wholly() -> None:
    rising = correlation([1, 2, 3, 4], [1, 10, 100, 1000])
    falling = correlation([1, 2, 3, 4], [4, 3, 2, 1])
    assert rising is not None
    assert falling is not None
    assert (rising[0], falling[0]) == (pytest.approx(1), pytest.approx(-1))


def test_more_points_make_a_correlation_surer() -> None:
    """The same scatter ten times over: the interval narrows about √10 times."""
    few = correlation([1, 2, 3, 4, 5, 6, 7, 8], [2, 1, 4, 3, 6, 5, 8, 7])
    many = correlation([1, 2, 3, 4, 5, 6, 7, 8] * 10, [2, 1, 4, 3, 6, 5, 8, 7] * 10)
    assert few is not None
    assert many is not None
    assert few[0] == pytest.approx(many[0])
    assert few[1].width / many[1].width > 3


def test_too_few_points_have_no_correlation() -> None:
    assert correlation([1, 2, 3], [1, 2, 3]) is None
    assert correlation([], []) is None


# --- Changes, paired -------------------------------------------------------------------------------------------------


def test_rounding_is_no_spread() -> None:
    """Three prompts that all gained 0.3 are no proof, whatever binary fractions make of 0.3."""
    before, after = [[0.1], [0.2], [0.3]], [[0.4], [0.5], [0.6]]
    assert len({now[0] - was[0] for was, now in zip(before, after, strict=True)}) > 1
    found = mean_change(before, after)
    assert found is not None and found.interval is None and found.value == pytest.approx(0.3)
    ratio = ratio_change([1.0, 2.0, 3.0], [1.3, 2.6, 3.9], [1.0, 2.0, 3.0])
    assert ratio is not None and ratio.interval is None and ratio.value == pytest.approx(0.3)


def test_the_mean_change_is_of_prompt_means_and_its_interval_over_prompts() -> None:
    """Differences of means 1, 2, 3: mean 2, standard error 1 / sqrt(3), t(0.975, 2) = 4.3027."""
    found = mean_change([[0, 2], [1], [4, 4]], [[1, 3], [3], [6, 8]])
    assert found is not None and found.interval is not None
    assert (found.value, found.count) == (pytest.approx(2), 3)
    assert found.interval.low == pytest.approx(2 - 4.3027 / math.sqrt(3), abs=1e-3)
    assert found.interval.high == pytest.approx(2 + 4.3027 / math.sqrt(3), abs=1e-3)


def test_more_answers_to_the_same_prompts_do_not_pass_for_more_prompts() -> None:
    before, after = [[0.0], [1.0], [2.0]], [[1.0], [1.5], [4.0]]
    again = mean_change([prompt * 10 for prompt in before], [prompt * 10 for prompt in after])
    assert again == mean_change(before, after)


def test_equal_changes_are_sure_from_six_prompts_on() -> None:
    five, six, none = (mean_change([[0.0]] * n, [[size]] * n) for n, size in ((5, 1.0), (6, 1.0), (6, 0.0)))
    assert five is not None and five.interval is None
    assert six is not None and six.interval == Interval(1.0, 1.0)
    assert none is not None and none.interval == Interval(0.0, 0.0)
    assert mean_change([], []) is None


def test_a_change_of_a_loss_per_token_by_hand() -> None:
    """Sums 10, 20 over 10, 30 tokens become 5, 20: 0.75 to 0.625 nats per token."""
    found = ratio_change([10, 20], [5, 20], [10, 30])
    assert found is not None and found.interval is not None
    assert found.value == pytest.approx(25 / 40 - 30 / 40)
    # Without the first pair it is 0 / 30, without the second -5 / 10: standard error sqrt((0.25² + 0.25²) / 2).
    half = 12.706 * 0.25  # t(0.975, 1)
    assert found.interval.high - found.value == pytest.approx(half, rel=1e-3)
    assert found.value - found.interval.low == pytest.approx(half, rel=1e-3)
    assert ratio_change([], [], []) is None
    alone = ratio_change([1.0, 0.0], [2.0, 0.0], [10.0, 0.0])
    assert alone is not None and (alone.value, alone.interval) == (0.1, None)


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 99)), min_size=3, max_size=30))
def test_the_ratios_interval_is_the_jackknifes(answers: list[tuple[int, int, int]]) -> None:
    before, after, sizes = (np.array(column, float) for column in zip(*answers, strict=True))
    found, n = ratio_change(before.tolist(), after.tolist(), sizes.tolist()), len(sizes)
    left_out = [(np.delete(after, i) - np.delete(before, i)).sum() / np.delete(sizes, i).sum() for i in range(n)]
    error = math.sqrt((n - 1) / n * np.sum((left_out - np.mean(left_out)) ** 2))
    assert found is not None
    if found.interval is None:  # of values that differ by rounding only
        assert error < 1e-4
        return
    assert found.interval.width / 2 == pytest.approx(t.ppf(0.975, n - 1) * error, rel=1e-6, abs=1e-9)


def test_the_ratios_interval_is_nearly_the_bootstraps() -> None:
    """scipy as the oracle, on answers of uneven lengths."""
    draw = np.random.default_rng(3)
    sizes = draw.integers(5, 200, 80).astype(float)
    before = sizes * draw.normal(3.0, 0.5, 80)
    after = sizes * draw.normal(2.8, 0.5, 80)
    found = ratio_change(before.tolist(), after.tolist(), sizes.tolist())
    wanted = bootstrap(
        (before, after, sizes), lambda b, a, s, axis: (a.sum(axis) - b.sum(axis)) / s.sum(axis), paired=True, rng=0
    )
    assert found is not None and found.interval is not None
    assert found.value == pytest.approx((after.sum() - before.sum()) / sizes.sum())
    assert found.interval.low == pytest.approx(wanted.confidence_interval.low, abs=0.15 * found.interval.width)
    assert found.interval.high == pytest.approx(wanted.confidence_interval.high, abs=0.15 * found.interval.width)


def test_the_median_change_is_of_all_answers_with_prompts_drawn_again() -> None:
    before = [[float(i), float(i) + 10] for i in range(9)]
    after = [[value + 3 for value in prompt] for prompt in before]
    found = median_change(before, after)
    assert found is not None and found.interval is not None
    assert (found.value, found.count) == (3, 9)
    assert (found.interval.low, found.interval.high) == (3, 3)
    alone = median_change([[1.0, 2.0]], [[2.0, 3.0]])
    assert alone is not None and (alone.value, alone.interval) == (1, None)
    assert median_change([], []) is None


def test_a_median_can_stay_where_the_mean_moves() -> None:
    """As seen: the median of single answers hardly moved while their mean rose."""
    before = [[0.0], [0.1], [0.9], [1.0], [1.1]] * 5
    after = [[0.9], [0.9], [0.9], [1.0], [1.1]] * 5
    means, medians = mean_change(before, after), median_change(before, after)
    assert means is not None and means.interval is not None and means.interval.low > 0
    assert medians is not None and medians.interval is not None and medians.interval.contains(0)
