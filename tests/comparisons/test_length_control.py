from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy.optimize import minimize

from prefine.comparisons.length_control import LengthControl, length_controlled


def judged(count: int, level: float, slope: float) -> tuple[list[float], list[float]]:
    """Verdicts of a judge whose preference depends on length; the candidate is longer by half a deviation."""
    draw = random.Random(1)
    lengths = [draw.gauss(20, 40) for _ in range(count)]
    chances = [1 / (1 + math.exp(-level - slope * math.tanh(length / 40))) for length in lengths]
    return [0.5 if draw.random() < 0.1 else float(draw.random() < chance) for chance in chances], lengths


def test_a_judge_of_length_alone_has_no_preference_at_equal_length() -> None:
    wins, lengths = judged(2_000, 0.0, 2.0)
    found = length_controlled(wins, lengths)
    assert sum(wins) / len(wins) > 0.6
    assert found.rate is not None
    assert found.rate.low is not None
    assert found.rate.high is not None
    assert found.rate.low < 0.5 < found.rate.high
    assert found.rate.high - found.rate.low < 0.06
    assert found.favours_longer


def test_the_rate_has_the_greatest_likelihood() -> None:
    wins, lengths = judged(150, 0.5, 1.0)
    x, y = np.tanh(np.array(lengths) / np.std(lengths)), np.array(wins)

    def loss(level_slope: np.ndarray) -> float:
        logits = level_slope[0] + level_slope[1] * x
        return float(np.sum(np.logaddexp(0, logits) - y * logits))

    level, slope = minimize(loss, [0.0, 0.0], tol=1e-10).x
    found = length_controlled(wins, lengths)
    assert found.rate is not None
    assert found.rate.value == pytest.approx(1 / (1 + math.exp(-level)), abs=1e-4)
    assert found.favours_longer == (slope > 0)


def test_exchanged_models_mirror_the_rate() -> None:
    wins, lengths = judged(80, 0.5, -1.0)
    there, back = (
        length_controlled(wins, lengths),
        length_controlled([1 - win for win in wins], [-by for by in lengths]),
    )
    assert there.rate is not None
    assert back.rate is not None
    assert there.rate.value == pytest.approx(1 - back.rate.value)
    assert there.rate.low == pytest.approx(1 - (back.rate.high or 0))
    assert there.favours_longer is back.favours_longer is False


@pytest.mark.parametrize(
    ("wins", "lengths", "why"),
    [
        ([1.0, 0.0] * 4, [1.0, 2.0] * 4, "at least 10 verdicts"),
        ([1.0, 0.0] * 10, [7.0] * 20, "by the same number of tokens"),
        ([1.0] * 20, [1.0, 2.0] * 10, "all verdicts are the same"),
        ([1.0, 0.0] * 10, [5.0, -5.0] * 10, "no finite solution"),
    ],
)
def test_where_nothing_can_be_said_the_reason_is_given(wins: list[float], lengths: list[float], why: str) -> None:
    found = length_controlled(wins, lengths)
    assert found == LengthControl(None, why_not=found.why_not)
    assert why in found.why_not
