"""Rolling means."""

from __future__ import annotations

from prefine.training.tracking.rolling import Rolling


def test_means_are_over_the_last_steps_that_have_the_metric() -> None:
    rolling = Rolling(steps=2)
    assert rolling.after({"loss": 1.0, "tokens": 5}) == {"rolling/loss": 1.0}
    assert rolling.after({"loss": 2.0}) == {"rolling/loss": 1.5}
    assert rolling.after({"loss": 4.0, "reward": 1.0}) == {"rolling/loss": 3.0, "rolling/reward": 1.0}
    assert rolling.after({"reward": 3.0}) == {"rolling/reward": 2.0}


def test_earlier_rows_count_and_those_that_were_not_finite_do_not() -> None:
    assert Rolling([{"loss": 1.0}, {"loss": None}]).after({"loss": 2.0}) == {"rolling/loss": 1.5}
