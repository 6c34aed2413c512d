"""Places of changes on their scales, worked by hand."""

from __future__ import annotations

import pytest

from prefine.comparisons.result import Comparison, Direction, Estimate, Metric, Side, Verdict
from prefine.report.comparison.forest import ForestRow, forest


def rows_of(*metrics: Metric) -> dict[str, ForestRow]:
    side = Side(name="x", kind="model")
    verdict = Verdict(decision="better", decided_by="a", sentence="")
    found = Comparison(
        prefine="",
        made_at="",
        candidate=side,
        baseline=side,
        prompts={},
        sampling={},
        verdict=verdict,
        metrics=list(metrics),
    )
    return {row.title: row for group in forest(found) for row in group.rows}


def metric(title: str, unit: str, better: Direction, *ends: float) -> Metric:
    low, value, high = ends
    change = Estimate(value=value, low=low, high=high, count=10)
    return Metric(
        name=title,
        title=title,
        unit=unit,
        group="form",
        better=better,
        change=change,
        finding="differs"
        if better == "neither" and low > 0
        else "no difference shown"
        if better == "neither"
        else "better",
        sentence="",
    )


def test_the_candidate_is_better_to_the_right() -> None:
    rows = rows_of(metric("reward", "score", "higher", -1, 1, 2), metric("length", "tokens", "lower", -4, -2, 1))
    # The farthest end is at 50 / 1.08 of the half width: 2 is at 50 + 46.296, and 1 at half of that.
    reward = rows["reward"]
    assert (reward.low, reward.value, reward.high) == (
        pytest.approx(26.852),
        pytest.approx(73.148),
        pytest.approx(96.296),
    )
    length = rows["length"]  # fewer is better: −4 is to the right
    assert (length.low, length.value, length.high) == (
        pytest.approx(38.426),
        pytest.approx(73.148),
        pytest.approx(96.296),
    )
    assert length.change == "−2.00 tokens" and length.range == "−4.00 to +1.00"


def test_shares_have_one_scale() -> None:
    rows = rows_of(metric("a", "share", "higher", 0.1, 0.2, 0.4), metric("b", "share", "higher", 0.0, 0.1, 0.2))
    assert rows["b"].high == rows["a"].value
    assert rows["a"].change == "+20.0 points"


def test_a_figure_that_only_describes_is_higher_or_lower() -> None:
    rows = rows_of(metric("kl", "nats", "neither", 0.1, 0.2, 0.3), metric("h", "nats", "neither", -0.1, 0.2, 0.3))
    assert (rows["kl"].mark.word, rows["h"].mark.word) == ("higher", "no difference shown")
    assert rows["kl"].describes


def test_no_change_at_all_is_in_the_middle() -> None:
    assert rows_of(metric("a", "score", "higher", 0, 0, 0))["a"].value == 50
