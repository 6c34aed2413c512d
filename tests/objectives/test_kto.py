"""KTO's loss, by numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefine.objectives.kto import Weights, kl_baseline, kto

RATIOS = st.floats(-30, 30)
EQUAL = Weights()


def losses(ratios: list[float], up: list[bool], beta: float, baseline: float, weights: Weights = EQUAL) -> list[float]:
    found: list[float] = kto(
        torch.tensor(ratios, dtype=torch.float64), torch.tensor(up), beta, baseline, weights
    ).tolist()
    return found


def test_by_hand() -> None:
    """h = 1 + 2 ln 3, so that beta (h - z_0) is ln 3, whose sigma is 3/4."""
    ratio = math.log(3) / 0.5 + 1.0
    assert losses([ratio, ratio], [True, False], 0.5, 1.0) == pytest.approx([1 / 4, 3 / 4])
    weights = Weights(desirable=2.0, undesirable=1.5)
    assert losses([ratio, ratio], [True, False], 0.5, 1.0, weights) == pytest.approx([2 / 4, 1.5 * 3 / 4])


def test_where_policy_and_reference_agree_half_of_each_weight_is_lost() -> None:
    assert losses([0.0, 0.0], [True, False], 0.1, 0.0, Weights(1.0, 3.0)) == pytest.approx([0.5, 1.5])


def test_the_limits_of_certainty() -> None:
    """A liked answer that is far likelier than before costs nothing, a disliked one its whole weight."""
    assert losses([1e4, 1e4, -1e4, -1e4], [True, False] * 2, 1.0, 0.0) == pytest.approx([0, 1, 1, 0])


@given(RATIOS, st.booleans(), st.floats(0.01, 2), st.floats(0, 5), st.floats(0.1, 4), st.floats(0.1, 4))
def test_the_gradient_is_that_of_the_value_function(
    ratio: float, up: bool, beta: float, baseline: float, desirable: float, undesirable: float
) -> None:
    """dv/dh = lambda beta sigma (1 - sigma), towards liked answers and away from disliked ones."""
    leaf = torch.tensor([ratio], dtype=torch.float64, requires_grad=True)
    loss = kto(leaf, torch.tensor([up]), beta, baseline, Weights(desirable, undesirable))
    (slope,) = torch.autograd.grad(loss.sum(), leaf)
    sigma = 1 / (1 + math.exp(-beta * (ratio - baseline)))
    wanted = (-desirable if up else undesirable) * beta * sigma * (1 - sigma)
    assert slope.item() == pytest.approx(wanted, rel=1e-6, abs=1e-12)


@given(st.lists(RATIOS, min_size=1, max_size=6), st.floats(0.01, 2))
def test_all_votes_up_and_all_votes_down_are_mirrored(ratios: list[float], beta: float) -> None:
    up = losses(ratios, [True] * len(ratios), beta, 0.0)
    down = losses([-ratio for ratio in ratios], [False] * len(ratios), beta, 0.0)
    assert up == pytest.approx(down)


def test_the_baseline_is_at_least_zero() -> None:
    assert (kl_baseline(1.5), kl_baseline(-0.5)) == (1.5, 0.0)
