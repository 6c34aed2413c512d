"""Reward objectives, by numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefine.objectives import reward

MARGINS = st.floats(-30, 30)
RIGHT = st.floats(0, 1)


def one(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


@pytest.mark.parametrize("right", [0.0, 0.3, 0.5, 1.0])
def test_equal_scores_cost_ln_2_whatever_the_label(right: float) -> None:
    assert reward.bradley_terry(one(0.0), one(right)).item() == pytest.approx(math.log(2))


def test_bradley_terry_by_hand() -> None:
    """σ(ln 3) = 3/4: a certain label costs ln(4/3), its opposite ln 4, a tie half of both."""
    margin = one(math.log(3))
    assert reward.bradley_terry(margin, one(1.0)).item() == pytest.approx(math.log(4 / 3))
    assert reward.bradley_terry(margin, one(0.0)).item() == pytest.approx(math.log(4))
    assert reward.bradley_terry(margin, one(0.5)).item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    assert reward.bradley_terry(margin, one(0.9)).item() == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4))


@given(MARGINS, RIGHT)
def test_bradley_terry_is_the_cross_entropy_of_the_label(margin: float, right: float) -> None:
    """torch's own binary cross-entropy is the oracle; the gradient is σ(margin) - right."""
    leaf = one(margin).requires_grad_()
    loss = reward.bradley_terry(leaf, one(right))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(one(margin), one(right))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    assert gradient.item() == pytest.approx(1 / (1 + math.exp(-margin)) - right, abs=1e-9)


@given(MARGINS)
def test_a_tie_pulls_scores_together(margin: float) -> None:
    leaf = one(margin).requires_grad_()
    (gradient,) = torch.autograd.grad(reward.bradley_terry(leaf, one(0.5)).sum(), leaf)
    assert math.copysign(1, gradient.item()) == math.copysign(1, margin) or abs(gradient.item()) < 1e-12


@given(MARGINS, RIGHT)
def test_losses_do_not_care_which_side_is_called_chosen(margin: float, right: float) -> None:
    for loss in (reward.bradley_terry, reward.hinge):
        there, back = loss(one(margin), one(right)), loss(one(-margin), one(1 - right))
        assert there.item() == pytest.approx(back.item(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("margin", "right", "expected"),
    [(0.0, 1.0, 1.0), (0.4, 1.0, 0.6), (3.0, 1.0, 0.0), (-2.0, 1.0, 3.0), (0.4, 0.5, 0.5 * 0.6 + 0.5 * 1.4)],
)
def test_hinge_by_hand(margin: float, right: float, expected: float) -> None:
    assert reward.hinge(one(margin), one(right)).item() == pytest.approx(expected)


def test_centring_is_zero_only_where_the_two_scores_cancel() -> None:
    assert reward.centring(one(2.0), one(-2.0)).item() == 0
    assert reward.centring(one(2.0), one(1.0)).item() == 9


@pytest.mark.parametrize(
    ("up", "smoothing", "expected"),
    [
        (1.0, 0.0, math.log(4 / 3)),
        (0.0, 0.0, math.log(4)),
        (1.0, 0.2, 0.8 * math.log(4 / 3) + 0.2 * math.log(4)),
        (0.0, 0.2, 0.2 * math.log(4 / 3) + 0.8 * math.log(4)),
    ],
)
def test_votes_by_hand(up: float, smoothing: float, expected: float) -> None:
    assert reward.vote(one(math.log(3)), one(up), smoothing).item() == pytest.approx(expected)
