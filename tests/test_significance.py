from __future__ import annotations

import math
from statistics import NormalDist

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import permutation_test, sem, skew, t
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from prefine.intervals import Share, mean
from prefine.significance import (
    change_of_mean,
    change_of_ratio,
    change_of_share,
    holm,
    interval_of_mean,
    interval_of_median,
    median_of_changes,
    more_prompts,
    more_prompts_corrected,
    sign_flip_test,
    sign_test,
)

counts = st.integers(0, 40)


def test_five_changes_in_one_direction_are_not_enough_and_six_are() -> None:
    """2 / 2**5 = 0.0625 and 2 / 2**6 = 0.03125."""
    assert sign_test(5, 0) == pytest.approx(0.0625)
    assert sign_test(0, 6) == pytest.approx(0.03125)
    assert sign_flip_test([1, 2, 3, 4, 5]) == pytest.approx(0.0625)
    assert sign_flip_test([-1, -2, -3, -4, -5, -6]) == pytest.approx(0.03125)


@given(counts, counts)
def test_the_sign_test_is_mcnemars_exact_test(up: int, down: int) -> None:
    assert sign_test(up, down) == pytest.approx(mcnemar([[5, up], [down, 5]], exact=True).pvalue)


@pytest.mark.parametrize("changes", [[1.5, -0.2, 0.9, 2.0, 0.0, -0.1, 0.4], [0.3, 0.3, -0.1, 0.2], [2.0, -2.0, 1.0]])
def test_all_sign_patterns_are_counted(changes: list[float]) -> None:
    def total(values: object, axis: int) -> object:
        return values.sum(axis)  # type: ignore[attr-defined]

    found = permutation_test((changes,), total, permutation_type="samples", vectorized=True, n_resamples=1_000)
    assert sign_flip_test(changes) == pytest.approx(found.pvalue)


def test_many_prompts_take_random_sign_patterns() -> None:
    changes = [1.0] * 19 + [-1.0] * 11  # of equal size, so the flips of 30 are binomial
    assert sign_flip_test(changes) == pytest.approx(sign_test(19, 11), abs=0.01)
    assert sign_flip_test([1.0] * 40) == 1e-4


# Newcombe 1998 (Statistics in Medicine 17, 2635-2650) and Tango 1998 (17, 891-908) as PropCIs' documentation has them.
def test_intervals_of_shares_are_tangos() -> None:
    found = change_of_share(12, 2, 50)
    assert found is not None
    assert found.interval is not None
    assert (round(found.interval.low, 4), round(found.interval.high, 4)) == (0.0611, 0.3447)


@given(st.integers(0, 60), st.integers(0, 60))
def test_without_ties_tangos_interval_is_wilsons(up: int, down: int) -> None:
    if not up + down:
        return
    found, wilson = change_of_share(up, down, up + down), Share(up / (up + down), up + down).interval
    assert found is not None
    assert found.interval is not None
    assert wilson is not None
    assert found.interval.low == pytest.approx(2 * wilson.low - 1, abs=1e-6)
    assert found.interval.high == pytest.approx(2 * wilson.high - 1, abs=1e-6)


@given(counts, counts, counts)
def test_exchanged_models_mirror_a_share(up: int, down: int, ties: int) -> None:
    there, back = (change_of_share(a, b, up + down + ties) for a, b in ((up, down), (down, up)))
    if there is None or back is None:
        assert up + down + ties == 0
        return
    assert there.interval is not None
    assert back.interval is not None
    assert there.value == -back.value
    assert there.p == back.p
    assert there.interval.low == pytest.approx(-back.interval.high, abs=1e-9)
    assert there.interval.contains(there.value)
    assert -1 <= there.interval.low <= there.interval.high <= 1


@settings(max_examples=40)
@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=1, max_size=30))
def test_exchanged_models_mirror_a_mean(pairs: list[tuple[float, float]]) -> None:
    now, was = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    there, back = change_of_mean(now, was), change_of_mean(was, now)
    assert there is not None
    assert back is not None
    assert there.value == -back.value
    assert there.p == back.p
    if there.interval is not None:
        assert back.interval is not None
        assert there.interval.low == pytest.approx(-back.interval.high)


def test_without_prompts_there_is_no_change() -> None:
    assert change_of_mean([], []) is None
    assert change_of_share(0, 0, 0) is None


@pytest.mark.parametrize("ps", [[0.5], [0.01, 0.04, 0.03, 0.005], [0.2, 0.2, 0.001, 1.0, 0.0], [0.9, 0.6, 0.4]])
def test_holm_is_statsmodels(ps: list[float]) -> None:
    corrected = holm([None, *ps, None])
    assert corrected[0] is corrected[-1] is None
    assert corrected[1:-1] == pytest.approx(multipletests(ps, method="holm")[1])


def test_holm_by_hand() -> None:
    """0.01 · 3, then max(0.03, 0.02 · 2), then max(0.04, 0.03 · 1)."""
    assert holm([0.02, 0.01, 0.03]) == pytest.approx([0.04, 0.03, 0.04])


def test_more_prompts_by_hand() -> None:
    """(1.96 + 0.8416)² = 7.849 deviations² of a change of one deviation; of 0.2 deviations 196.2 prompts."""
    assert more_prompts(0.2, 1.0, 100) == 97
    assert more_prompts(-0.2, 1.0, 16) == 190  # 180.2, in two digits and upwards
    assert more_prompts(0.2, 1.0, 200) is None
    assert more_prompts(0.0, 1.0, 10) is None
    assert more_prompts(1e-6, 1.0, 10) is None


def test_the_interval_of_a_mean_solves_halls_equation() -> None:
    """Skewed to the right: the upper end is the transformation's, where its statistic is -t; the lower is Student's."""
    values = [0.1, 0.2, 0.2, 0.3, 0.5, 0.7, 1.1, 2.9]
    found, students = interval_of_mean(values), mean(values)
    assert found is not None
    assert students is not None
    assert students.interval is not None
    assert found.low == students.interval.low
    assert found.high > students.interval.high
    n, g = len(values), float(skew(values))
    statistic = (students.value - found.high) / float(sem(values))
    terms = statistic + g * statistic**2 / (3 * math.sqrt(n)) + g**2 * statistic**3 / (27 * n) + g / (6 * math.sqrt(n))
    assert terms == pytest.approx(-float(t.ppf(0.975, n - 1)))


def test_symmetric_values_have_students_interval() -> None:
    values = [-2.0, -1.0, 0.0, 1.0, 2.0]
    students = mean(values)
    assert students is not None
    assert interval_of_mean(values) == students.interval
    assert interval_of_mean([1.0]) is interval_of_mean([1.0, 1.0]) is None


def test_the_median_of_few_values_has_no_interval() -> None:
    assert interval_of_median([1.0] * 5) is None
    found = interval_of_median([6.0, 1.0, 5.0, 2.0, 4.0, 3.0])
    assert found is not None
    assert 1 <= found.low < 2 < 5 < found.high <= 6  # the range of six holds 96.9 %


def test_medians_of_changes_use_the_sign_test() -> None:
    found = median_of_changes([2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 0.0], [1.0] * 7)
    assert found is not None
    assert (found.value, found.p) == (3.0, pytest.approx(sign_test(6, 1)))
    assert median_of_changes([], []) is None


def test_a_ratio_of_equal_sizes_is_a_mean() -> None:
    now, was = [1.0, 2.5, 3.0, 4.5], [0.5, 1.0, 3.5, 2.0]
    ratio, plain = change_of_ratio(now, was, [2.0] * 4), change_of_mean(now, was)
    assert ratio is not None
    assert plain is not None
    assert ratio.value == pytest.approx(plain.value / 2)
    assert ratio.p == plain.p
    assert ratio.deviation == pytest.approx(plain.deviation / 2)
    assert change_of_ratio([], [], []) is None


def test_more_prompts_after_a_correction_by_hand() -> None:
    """Two standard errors from 0 in 100 prompts. Without a correction it takes (2.80 / 2)² · 100 = 196 prompts;
    with one for 12 comparisons (3.71 / 2)² · 100 = 343.
    """
    p = 2 * (1 - NormalDist().cdf(2))
    assert more_prompts(0.2, 1.0, 100) == more_prompts_corrected(p, p * (1 + 1e-12), 100) == 97
    assert more_prompts_corrected(p, 12 * p, 100) == 250
    assert more_prompts_corrected(0.0, 0.0, 100) is None
