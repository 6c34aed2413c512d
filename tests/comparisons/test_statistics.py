from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefine.comparisons.result import Metric
from prefine.comparisons.statistics import (
    corrected,
    corrected_benchmarks,
    paired_median,
    paired_metric,
    paired_ratio,
    regression_group,
)
from prefine.comparisons.win_rate import win_rate
from prefine.intervals import Share

MIRRORED = {"better": "worse", "worse": "better"}


def of(candidate: list[float | None], baseline: list[float | None], unit: str = "score") -> Metric:
    return paired_metric("reward", "reward", unit, "reward", "higher", candidate, baseline)


def test_a_metric_by_hand() -> None:
    """Changes 1 to 8: all 256 sign patterns, of which 2 are as extreme."""
    metric = of([float(i) for i in range(1, 9)], [0.0] * 8)
    assert metric.change is not None
    assert (metric.change.value, metric.change.count) == (4.5, 8)
    half = 2.3646 * math.sqrt(6 / 8)  # t(0.975, 7) times the standard error; no skewness
    assert metric.change.low == pytest.approx(4.5 - half, abs=1e-3)
    assert metric.p == pytest.approx(2 / 256)
    assert metric.finding == "better"
    assert metric.sentence == (
        "Reward: better: +4.50 (95\u202f% interval +2.45 to +6.55), p = 0.008, 8 prompts; "
        "candidate 4.500, baseline 0.000."
    )


def test_prompts_without_both_values_are_left_out() -> None:
    metric = of([1.0, None, 3.0, math.nan, 5.0], [0.0, 1.0, None, 1.0, 3.0])
    assert metric.change is not None
    assert (metric.change.value, metric.change.count) == (1.5, 2)


@pytest.mark.parametrize(
    ("candidate", "baseline", "why"),
    [
        ([1.0, 2.0], [None, None], "the baseline has no value"),
        ([None], [math.inf], "neither model has a value"),
        ([1.0, None], [None, 1.0], "no prompt has a value for both models"),
        ([], [], "neither model has a value"),
    ],
)
def test_what_cannot_be_compared_says_why(
    candidate: list[float | None], baseline: list[float | None], why: str
) -> None:
    metric = of(candidate, baseline)
    assert (metric.finding, metric.why_not, metric.p) == ("not computed", why, None)
    assert why in metric.sentence


def test_one_prompt_shows_nothing() -> None:
    metric = of([3.0], [1.0])
    assert metric.finding == "no difference shown"
    assert "(no interval)" in metric.sentence


def test_shares_have_wilsons_interval_and_an_exact_test() -> None:
    metric = paired_metric("blank", "blank answers", "share", "form", "lower", [1.0] * 7 + [0.0] * 13, [0.0] * 20)
    wilson = Share(0.35, 20).interval
    assert wilson is not None
    assert metric.candidate is not None
    assert (metric.candidate.low, metric.candidate.high) == (wilson.low, wilson.high)
    assert metric.p == pytest.approx(2 / 2**7)
    assert metric.finding == "worse"
    assert "+35.0 points" in metric.sentence


def test_a_metric_without_a_better_direction_differs() -> None:
    metric = paired_metric("length", "length", "tokens", "form", "neither", [9.0, 8.0, 9.5] * 4, [1.0, 2.0, 3.0] * 4)
    assert metric.finding == "differs"
    alone = corrected([metric], [], [])[0][0]
    assert (alone.finding, alone.p_adjusted) == ("differs", None)


def test_the_median_is_of_changes() -> None:
    """Eleven changes 1 to 11: sign test 2 / 2**11, and the order statistics between the 2nd and the 3rd.

    P(at most 1 of 11) = 12 / 2048, P(at most 2) = 67 / 2048: 98.8 and 93.5 %; 95 % lies 0.7273 of the way, which
    Hettmansperger and Sheather's formula makes 0.9083.
    """
    metric = paired_median("r", "reward", "score", "reward", "higher", [float(i) for i in range(1, 12)], [0.0] * 11)
    assert metric.change is not None
    part = ((1 - 24 / 2048) - 0.95) / ((134 - 24) / 2048)
    weight = 9 * part / (2 + 7 * part)
    assert metric.change.value == 6.0
    assert metric.change.low == pytest.approx(2 + weight)
    assert metric.change.high == pytest.approx(10 - weight)
    assert metric.p == pytest.approx(2 / 2**11)


def test_a_ratio_weighs_answers_by_their_size() -> None:
    """Losses 10, 30 against 12, 36 of 10 and 30 tokens: 1.0 and 1.2 nats per token."""
    metric = paired_ratio("loss", "loss", "nats", "preference", "lower", [10.0, 30.0], [12.0, 36.0], [10.0, 30.0])
    assert metric.candidate is not None
    assert metric.baseline is not None
    assert metric.change is not None
    assert (metric.candidate.value, metric.baseline.value) == (1.0, 1.2)
    assert metric.change.value == pytest.approx(-0.2)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=25))
def test_exchanged_models_mirror_a_metric(pairs: list[tuple[int, int]]) -> None:
    now, was = [float(pair[0]) for pair in pairs], [float(pair[1]) for pair in pairs]
    for make in (paired_metric, paired_median):
        there, back = (make("r", "r", "", "", "higher", *sides) for sides in ((now, was), (was, now)))
        assert there.change is not None
        assert back.change is not None
        assert there.change.value == pytest.approx(-back.change.value)
        assert (there.candidate, there.p, there.more_prompts) == (back.baseline, back.p, back.more_prompts)
        assert MIRRORED.get(there.finding, there.finding) == back.finding
        if there.change.low is not None:
            assert there.change.low == pytest.approx(-(back.change.high or 0))
    group, other = (
        regression_group("c", "c", [a > 0 for a in x], [b > 0 for b in y], [str(i) for i in range(len(x))])
        for x, y in ((now, was), (was, now))
    )
    assert (group.lost, group.gained, group.p) == (other.gained, other.lost, other.p)
    assert MIRRORED.get(group.finding, group.finding) == other.finding


def test_a_regression_group_names_what_was_lost() -> None:
    group = regression_group("sums", "arithmetic", [True, False, False, True], [False, True, True, True], list("abcd"))
    assert (group.lost, group.gained, group.examples) == (2, 1, ["b", "c"])
    assert group.finding == "no difference shown"
    assert "passed 2 of 4, the baseline 3; 2 lost, 1 gained" in group.sentence
    with pytest.raises(ValueError, match="no items"):
        regression_group("sums", "arithmetic", [], [], [])


def test_several_comparisons_are_corrected_but_not_the_one_that_decides() -> None:
    """0.03125 alone shows a difference; times three it does not."""
    six = ([1.0, 1.1, 1.2, 1.3, 1.4, 1.5], [0.0] * 6)
    metrics = [paired_metric(f"m{i}", f"m{i}", "", "", "higher", *six) for i in range(3)]
    rate = win_rate("judge", ["candidate"] * 6, [])
    assert {metric.finding for metric in metrics} == {rate.finding} == {"better"}
    found, rates, _ = corrected(metrics, [rate], [], "judge")
    assert [metric.p_adjusted for metric in found] == pytest.approx([0.09375] * 3)
    assert {metric.finding for metric in found} == {"no difference shown"}
    assert "corrected for several comparisons = 0.094" in found[0].sentence
    assert (rates[0].finding, rates[0].p_adjusted) == ("better", None)


def test_benchmarks_are_corrected_for_their_number() -> None:
    """Seven wins of seven (p = 0.0156) among four tasks: 0.0625, not shown; alone it is."""
    lost = [paired_metric("t0.acc", "t0, acc", "share", "benchmark", "higher", [0.0] * 7 + [1.0] * 13, [1.0] * 20)]
    others = [
        paired_metric(f"t{i}.acc", f"t{i}, acc", "share", "benchmark", "higher", [1.0] * 20, [1.0] * 20)
        for i in range(1, 4)
    ]
    assert corrected_benchmarks(lost)[0].finding == "worse"
    found = corrected_benchmarks([*lost, *others])
    assert found[0].p_adjusted == pytest.approx(4 * 2 / 2**7)
    assert found[0].finding == "no difference shown"


def test_what_a_correction_hides_has_a_number_of_prompts_too() -> None:
    """16 of 20 prompts rose (p = 0.012): shown alone, not among 12 metrics."""
    values = [1.0] * 16 + [-1.0] * 4
    alone = paired_metric("m", "m", "", "", "higher", values, [0.0] * 20)
    same = paired_metric("n", "n", "", "", "higher", [0.1, -0.1] * 10, [0.0] * 20)
    assert (alone.finding, alone.more_prompts) == ("better", None)
    hidden = corrected([alone, *[same] * 11], [], [])[0][0]
    assert hidden.finding == "no difference shown"
    assert hidden.more_prompts is not None and hidden.more_prompts > 0
    assert f"About {hidden.more_prompts} more prompts would settle it" in hidden.sentence
    again = corrected([hidden], [], [])[0][0]  # alone once more
    assert (again.finding, again.more_prompts) == ("better", None)
