"""PPO's losses by hand, where their gradient is none, and that at ratio 1 they are REINFORCE.

Log-ratios are written as ln of the ratio meant: the old log-probabilities are 0 throughout, and only the difference
counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from prefine.objectives import kl
from prefine.objectives.ppo import (
    approximate_kl,
    average_weights,
    policy_clipped,
    policy_loss,
    value_clipped,
    value_loss,
)

log_ratios = st.floats(-3, 3)
advantages = st.floats(0.01, 10).flatmap(lambda size: st.sampled_from([size, -size]))
clips = st.floats(0.05, 0.9)
numbers = st.floats(-5, 5)


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def at(loss: Callable[[Tensor], Tensor], value: float) -> tuple[float, float]:
    """A loss and its slope there."""
    leaf = one(value).requires_grad_()
    height = loss(leaf)
    (slope,) = torch.autograd.grad(height.sum(), leaf)
    return height.item(), slope.item()


# --- The policy ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.5, 2.0, -2.4, True),  # max(-2 * 1.5, -2 * 1.2)
        (1.5, -2.0, 3.0, False),  # max(2 * 1.5, 2 * 1.2)
        (0.5, 2.0, -1.0, False),  # max(-2 * 0.5, -2 * 0.8)
        (0.5, -2.0, 1.6, True),  # max(2 * 0.5, 2 * 0.8)
        (1.1, 2.0, -2.2, False),
        (1.1, -2.0, 2.2, False),
        (0.9, 2.0, -1.8, False),
        (0.9, -2.0, 1.8, False),
        (1.0, 2.0, -2.0, False),
        (1.0, -2.0, 2.0, False),
        (1.0, 0.0, 0.0, False),
    ],
)
def test_policy_by_hand(ratio: float, advantage: float, loss: float, clipped: bool) -> None:
    height, slope = at(lambda new: policy_loss(new, one(0.0), one(advantage), 0.2), math.log(ratio))
    assert height == pytest.approx(loss)
    assert slope == pytest.approx(0.0 if clipped else -advantage * ratio)  # d ratio / d log pi = ratio
    assert policy_clipped(one(math.log(ratio)), one(0.0), one(advantage), 0.2).tolist() == [clipped]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.25, 2.0, -2.5, False),  # below 1.28, above 1.2
        (1.5, 2.0, -2.56, True),  # max(-2 * 1.5, -2 * 1.28)
        (1.5, -2.0, 3.0, False),
        (0.5, -2.0, 1.6, True),  # as low as before: max(2 * 0.5, 2 * 0.8)
        (0.75, 2.0, -1.5, False),
    ],
)
def test_a_higher_upper_clip_by_hand(ratio: float, advantage: float, loss: float, clipped: bool) -> None:
    height, slope = at(lambda new: policy_loss(new, one(0.0), one(advantage), 0.2, 0.28), math.log(ratio))
    assert height == pytest.approx(loss)
    assert (slope == 0) == clipped
    assert policy_clipped(one(math.log(ratio)), one(0.0), one(advantage), 0.2, 0.28).tolist() == [clipped]


@pytest.mark.parametrize(
    ("average", "counted", "wanted"),
    [
        ("tokens", [True, True], 18 / 5),  # (1 + 2 + 4 + 5 + 6) / 5
        ("answers", [True, True], 3.25),  # (3 / 2 + 15 / 3) / 2
        ("max_length", [True, True], 1.125),  # 18 / (2 * 8)
        ("tokens", [False, True], 5.0),
        ("answers", [False, True], 5.0),
        ("max_length", [False, True], 15 / 8),
    ],
)
def test_averages_by_hand(average: Any, counted: list[bool], wanted: float) -> None:
    """Of losses 1, 2 of one answer and 4, 5, 6 of another; the longest possible has 8 tokens."""
    weights = average_weights(average, torch.tensor([2, 3]), torch.tensor(counted), 8)
    assert (weights * torch.tensor([1.0, 2.0, 4.0, 5.0, 6.0])).mean().item() == pytest.approx(wanted)


@given(log_ratios, advantages, clips)
@settings(max_examples=200, deadline=None)
def test_clipped_tokens_and_no_others_give_no_gradient(log_ratio: float, advantage: float, clip: float) -> None:
    ratio = math.exp(log_ratio)
    assume(min(abs(ratio - 1 - clip), abs(ratio - 1 + clip)) > 1e-9)  # at the bound itself rounding decides
    _, slope = at(lambda new: policy_loss(new, one(0.0), one(advantage), clip), log_ratio)
    (clipped,) = policy_clipped(one(log_ratio), one(0.0), one(advantage), clip).tolist()
    assert clipped == (ratio > 1 + clip if advantage > 0 else ratio < 1 - clip)
    assert (slope == 0) == clipped
    assert clipped or slope == pytest.approx(-advantage * ratio)


@given(*(st.floats(-3, 3),) * 3, st.none() | st.floats(0.1, 1))
@settings(max_examples=200, deadline=None)
def test_values_that_are_clipped_and_no_others_give_no_gradient(
    value: float, old: float, target: float, clip: float | None
) -> None:
    """But for a value on its target, which has no gradient either."""
    assume(abs(value - target) > 1e-3 and (clip is None or abs(abs(value - old) - clip) > 1e-3))
    near = value if clip is None else old + min(max(value - old, -clip), clip)
    assume(near == value or abs(abs(near - target) - abs(value - target)) > 1e-3)
    _, slope = at(lambda new: value_loss(new, one(old), one(target), clip), value)
    (clipped,) = value_clipped(one(value), one(old), one(target), clip).tolist()
    assert (slope == 0) == clipped


@given(log_ratios, advantages, clips)
@settings(max_examples=100, deadline=None)
def test_the_loss_is_pessimistic(log_ratio: float, advantage: float, clip: float) -> None:
    """Clipping only ever raises the loss: the objective is a lower bound of the unclipped one."""
    height = policy_loss(one(log_ratio), one(0.0), one(advantage), clip).item()
    assert height >= -advantage * math.exp(log_ratio) - 1e-12


def test_the_gradient_of_a_coin_by_hand() -> None:
    # Two words of 1/2, the first drawn, A = 2: -2 (1 - 1/2, 0 - 1/2) = (-1, 1)
    logits = torch.zeros(2, requires_grad=True)
    logprobs = logits.log_softmax(0)[:1]
    policy_loss(logprobs, logprobs.detach(), torch.tensor([2.0]), 0.2).sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [-1.0, 1.0]


@given(
    st.lists(st.floats(-4, 4), min_size=4, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.floats(-10, 10)), min_size=1, max_size=10),
    st.floats(0, 0.9),
)
@settings(max_examples=100, deadline=None)
def test_at_ratio_1_it_is_reinforce_with_a_baseline(
    logits: list[float], drawn: list[tuple[int, float]], clip: float
) -> None:
    leaf = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    logprobs = leaf.log_softmax(0)[[word for word, _ in drawn]]
    advantage = torch.tensor([each for _, each in drawn], dtype=torch.float64)
    (ours,) = torch.autograd.grad(
        policy_loss(logprobs, logprobs.detach(), advantage, clip).sum(), leaf, retain_graph=True
    )
    (reinforce,) = torch.autograd.grad(-(advantage * logprobs).sum(), leaf)
    assert ours.tolist() == pytest.approx(reinforce.tolist(), abs=1e-12)


@given(st.lists(st.tuples(log_ratios, advantages), min_size=1, max_size=8), clips)
@settings(max_examples=50, deadline=None)
def test_each_token_has_its_own_loss(tokens: list[tuple[float, float]], clip: float) -> None:
    ratios, gains = (torch.tensor(each, dtype=torch.float64) for each in zip(*tokens, strict=True))
    old = torch.zeros_like(ratios)
    alone = [policy_loss(one(ratio), one(0.0), one(gain), clip) for ratio, gain in tokens]
    assert policy_loss(ratios, old, gains, clip).tolist() == pytest.approx(torch.cat(alone).tolist())
    assert policy_clipped(ratios, old, gains, clip).shape == ratios.shape


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "loss"),
    [(-1000.0, 1.0, 0.0), (-1000.0, -1.0, 0.8), (1000.0, 1.0, -1.2), (1000.0, -1.0, math.exp(60))],
)
def test_losses_at_huge_log_ratios(log_ratio: float, advantage: float, loss: float) -> None:
    assert policy_loss(one(log_ratio), one(0.0), one(advantage), 0.2).item() == pytest.approx(loss)
    assert not policy_loss(one(log_ratio), one(0.0), one(advantage), 0.2).isnan().any()


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_word_that_became_impossible_gives_no_gradient(advantage: float) -> None:
    _, slope = at(lambda new: policy_loss(new, one(0.0), one(advantage), 0.2), -1000.0)
    assert slope == 0


@pytest.mark.parametrize("log_ratio", [89.0, 1000.0])
def test_a_clipped_token_gives_no_gradient_however_far_it_went(log_ratio: float) -> None:
    leaf = torch.tensor([log_ratio], requires_grad=True)
    loss = policy_loss(leaf, torch.zeros(1), torch.ones(1), 0.2)
    assert loss.item() == pytest.approx(-1.2)
    assert policy_clipped(leaf, torch.zeros(1), torch.ones(1), 0.2).tolist() == [True]
    (slope,) = torch.autograd.grad(loss.sum(), leaf)
    assert slope.tolist() == [0.0]


def test_without_an_advantage_there_is_no_loss_however_far_the_token_went() -> None:
    assert policy_loss(torch.tensor([89.0]), torch.zeros(1), torch.zeros(1), 0.2).tolist() == [0.0]


# --- The critic ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "target", "clip", "loss", "slope"),
    [
        (2.0, 3.0, 0.5, 3.125, 0.0),  # near 1/2: max((2 - 3)^2, (0.5 - 3)^2) / 2 = 6.25 / 2; the clipped one rules
        (2.0, 1.0, 0.5, 0.5, 1.0),  # max((2 - 1)^2, (0.5 - 1)^2) / 2 = 1 / 2
        (-2.0, -3.0, 0.5, 3.125, 0.0),  # the same below
        (-2.0, 3.0, 0.5, 12.5, -5.0),  # it went the wrong way: max((-2 - 3)^2, (-0.5 - 3)^2) / 2 = 25 / 2
        (0.25, 3.0, 0.5, 3.78125, -2.75),  # within the clip: 2.75^2 / 2
        (2.0, 3.0, None, 0.5, -1.0),
        (2.0, 2.0, None, 0.0, 0.0),
    ],
)
def test_value_by_hand(value: float, target: float, clip: float | None, loss: float, slope: float) -> None:
    """The old value is 0."""
    assert at(lambda new: value_loss(new, one(0.0), one(target), clip), value) == pytest.approx((loss, slope))


@given(numbers, numbers, numbers, st.floats(0.05, 3))
@settings(max_examples=200, deadline=None)
def test_value_gradient_is_the_error_or_none_where_the_clipped_branch_rules(
    value: float, old: float, target: float, clip: float
) -> None:
    near = min(max(value, old - clip), old + clip)
    own, clipped = abs(value - target), abs(near - target)
    assume(abs(own - clipped) > 1e-6 or abs(value - old) < clip - 1e-6)  # at a tie of the two, rounding decides
    height, slope = at(lambda new: value_loss(new, one(old), one(target), clip), value)
    assert height == pytest.approx(max(own, clipped) ** 2 / 2, abs=1e-9)
    assert slope == pytest.approx(0.0 if clipped > own + 1e-6 else value - target, abs=1e-9)


@given(numbers, numbers, numbers, st.floats(0.05, 3))
@settings(max_examples=50, deadline=None)
def test_clipping_the_value_never_lowers_the_loss(value: float, old: float, target: float, clip: float) -> None:
    plain = value_loss(one(value), one(old), one(target), None).item()
    assert plain == pytest.approx((value - target) ** 2 / 2)
    assert value_loss(one(value), one(old), one(target), clip).item() >= plain
    assert value_loss(one(value), one(old), one(target), 100.0).item() == pytest.approx(plain, abs=1e-9)


# --- How far it went -------------------------------------------------------------------------------------------------


def test_approximate_kl_by_hand() -> None:
    # Ratio 2: 2 - 1 - ln 2 = 0.306853; ratio 1/2: -1/2 + ln 2 = 0.193147; ratio 1: 0
    moved = approximate_kl(torch.tensor([2.0, 0.5, 1.0]).log(), torch.zeros(3))
    assert moved.tolist() == pytest.approx([0.306853, 0.193147, 0.0], abs=1e-6)


@given(*[st.lists(st.floats(-3, 3), min_size=4, max_size=4)] * 2)
@settings(max_examples=50, deadline=None)
def test_approximate_kl_is_on_average_that_of_the_old_policy_to_the_new(ours: list[float], olds: list[float]) -> None:
    new, old = (torch.tensor(each, dtype=torch.float64).log_softmax(0) for each in (ours, olds))
    moved = approximate_kl(new, old)
    exact = kl_divergence(Categorical(logits=old), Categorical(logits=new)).item()
    assert (old.exp() * moved).sum().item() == pytest.approx(exact, abs=1e-9)
    assert torch.equal(moved, kl.k3(old, new))
    assert moved.min().item() >= 0
