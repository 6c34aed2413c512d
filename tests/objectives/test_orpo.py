"""ORPO's losses, by numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefine.objectives.masked import Paired
from prefine.objectives.orpo import log_odds_ratio, odds_ratio

MEANS = st.floats(-20, -1e-3)


def pair(chosen: float, rejected: float) -> Paired:
    return Paired(*(torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (chosen, rejected)))


def test_by_hand() -> None:
    """P = 3/4 has odds 3, P = 1/2 odds 1: the ratio is 3, and sigma(ln 3) = 3/4."""
    means = pair(math.log(3 / 4), math.log(1 / 2))
    assert log_odds_ratio(means).item() == pytest.approx(math.log(3))
    assert odds_ratio(means).item() == pytest.approx(math.log(4 / 3))


def test_at_equal_odds_it_is_ln_2() -> None:
    assert odds_ratio(pair(-1.3, -1.3)).item() == pytest.approx(math.log(2))


@given(MEANS, MEANS)
def test_the_gradient_is_that_of_the_paper(chosen: float, rejected: float) -> None:
    """Eq. 8: delta(d) h(d), where delta = sigma(-log OR) and h has 1 / (1 - P) for each answer."""
    means = pair(chosen, rejected)
    slopes = torch.autograd.grad(odds_ratio(means).sum(), list(means))
    delta = 1 / (1 + math.exp(log_odds_ratio(means).item()))
    wanted = [-delta / (1 - math.exp(chosen)), delta / (1 - math.exp(rejected))]
    assert [slope.item() for slope in slopes] == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_answers_that_are_all_but_certain_or_impossible_have_finite_losses_and_slopes() -> None:
    """In fp32, as in a run."""
    for chosen, rejected in ((0.0, -1.0), (-1e-9, -1e-9), (-200.0, -0.5), (-0.5, -200.0)):
        means = Paired(*(torch.tensor([value], requires_grad=True) for value in (chosen, rejected)))
        loss = odds_ratio(means)
        slopes = torch.autograd.grad(loss.sum(), list(means))
        assert all(torch.isfinite(value).all() for value in (loss, *slopes)), (chosen, rejected)
