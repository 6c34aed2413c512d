"""Both estimators against the exact KL of vocabularies small enough to enumerate, and the coefficient's controller.

Used throughout: ln 2 = 0.693147, ln 1.5 = 0.405465. The expectation of a token's value is its sum over the whole
vocabulary under the policy; nothing is sampled here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from prefine.objectives.kl import KlController, k1, k3, kl_loss

WORDS = 5
logits = st.lists(st.floats(-4, 4), min_size=WORDS, max_size=WORDS)


def logprobs(values: list[float]) -> Tensor:
    """(WORDS,) the log-probabilities of a softmax."""
    return torch.tensor(values, dtype=torch.float64).log_softmax(0)


def exact(policy: Tensor, reference: Tensor) -> Tensor:
    """KL(policy || reference), by torch."""
    return kl_divergence(Categorical(logits=policy), Categorical(logits=reference))


def mean_under(policy: Tensor, values: Tensor) -> Tensor:
    return (policy.detach().exp() * values).sum()


def gradient(values: list[float], objective: Callable[[Tensor], Tensor]) -> Tensor:
    """(WORDS,) of an objective of the log-probabilities, with respect to the logits."""
    leaf = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(objective(leaf.log_softmax(0)), leaf)
    return slope


# --- One token -------------------------------------------------------------------------------------------------------


def test_by_hand() -> None:
    # Policy 1/2, reference 1/4: r = 1/2, so k1 = ln 2 and k3 = 1/2 - 1 + ln 2 = 0.193147.
    # Policy 1/4, reference 1/2: r = 2, so k1 = -ln 2 and k3 = 2 - 1 - ln 2 = 0.306853.
    policy, reference = torch.tensor([0.5, 0.25, 0.3]).log(), torch.tensor([0.25, 0.5, 0.3]).log()
    assert k1(policy, reference).tolist() == pytest.approx([0.693147, -0.693147, 0.0], abs=1e-6)
    assert k3(policy, reference).tolist() == pytest.approx([0.193147, 0.306853, 0.0], abs=1e-6)


@given(st.floats(-1e-3, 1e-3).map(lambda at: math.copysign(max(abs(at), 1e-7), at)))
@settings(max_examples=50, deadline=None)
def test_k3_of_near_equals_is_half_the_square_and_not_rounding(log_ratio: float) -> None:
    """e^x - 1 - x = x^2 / 2 + x^3 / 6 + ...; with exp in place of expm1 the last digits of 5e-15 would be noise."""
    x = torch.tensor([log_ratio], dtype=torch.float64)
    assert float(k3(torch.zeros_like(x), x)) == pytest.approx(log_ratio**2 / 2 + log_ratio**3 / 6, rel=1e-6, abs=0)


@given(st.floats(-60, 0), st.floats(-60, 0), st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
@settings(max_examples=200, deadline=None)
def test_k3_is_never_negative_in_any_type(policy: float, reference: float, dtype: torch.dtype) -> None:
    value = k3(torch.tensor([policy], dtype=dtype), torch.tensor([reference], dtype=dtype))
    assert value.dtype == dtype
    assert float(value) >= 0


def test_huge_log_ratios_are_large_and_never_nan() -> None:
    near, far = torch.tensor([0.0]), torch.tensor([-1000.0])
    assert (k1(near, far).tolist(), k1(far, near).tolist()) == ([1000.0], [-1000.0])
    assert k3(near, far).tolist() == [999.0]  # r = 0: -1 + 1000
    assert k3(far, near).tolist() == [math.inf]  # r = e^1000 is beyond the type


# --- A whole vocabulary ----------------------------------------------------------------------------------------------


def test_means_by_hand() -> None:
    # Policy 1/2 1/2, reference 1/4 3/4: KL = ln 2 / 2 + ln(2/3) / 2 = ln(4/3) / 2 = 0.143841.
    # k3 of the first is 0.193147 as above; of the second, r = 1.5, 0.5 - 0.405465 = 0.094535; half of each: 0.143841
    policy, reference = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    assert float(mean_under(policy, k1(policy, reference))) == pytest.approx(0.143841, abs=1e-6)
    assert float(mean_under(policy, k3(policy, reference))) == pytest.approx(0.143841, abs=1e-6)


@given(logits, logits)
@settings(max_examples=100, deadline=None)
def test_both_estimators_are_unbiased(ours: list[float], theirs: list[float]) -> None:
    policy, reference = logprobs(ours), logprobs(theirs)
    expected = float(exact(policy, reference))
    assert float(mean_under(policy, k1(policy, reference))) == pytest.approx(expected, abs=1e-9)
    assert float(mean_under(policy, k3(policy, reference))) == pytest.approx(expected, abs=1e-9)


@given(logits, st.lists(st.floats(-0.5, 0.5), min_size=WORDS, max_size=WORDS))
@settings(max_examples=100, deadline=None)
def test_k3_is_less_noisy_than_k1_where_policy_and_reference_are_near(ours: list[float], away: list[float]) -> None:
    policy, reference = logprobs(ours), logprobs([a + b for a, b in zip(ours, away, strict=True)])
    noise = [
        float(mean_under(policy, (each - mean_under(policy, each)) ** 2))
        for each in (k1(policy, reference), k3(policy, reference))
    ]
    assert noise[1] <= noise[0] + 1e-12


# --- Gradients -------------------------------------------------------------------------------------------------------


@given(logits, logits)
@settings(max_examples=100, deadline=None)
def test_k1_in_the_reward_has_the_gradient_of_the_kl(ours: list[float], theirs: list[float]) -> None:
    """The policy gradient of a mean reward f is the sum over x of p(x) f(x) grad log p(x)."""
    reference = logprobs(theirs)
    estimated = gradient(ours, lambda policy: mean_under(policy, k1(policy, reference).detach() * policy))
    assert torch.allclose(estimated, gradient(ours, lambda policy: exact(policy, reference)), atol=1e-9)


@given(logits, logits)
@settings(max_examples=50, deadline=None)
def test_k1_as_a_loss_pulls_nowhere(ours: list[float], theirs: list[float]) -> None:
    slope = gradient(ours, lambda policy: mean_under(policy, k1(policy, logprobs(theirs))))
    assert torch.allclose(slope, torch.zeros(WORDS, dtype=torch.float64), atol=1e-12)


@given(logits, logits)
@settings(max_examples=50, deadline=None)
def test_k3_as_a_loss_has_the_gradient_of_the_other_kl(ours: list[float], theirs: list[float]) -> None:
    """E[grad k3] = -sum over x of ref(x) grad log p(x): that of KL(reference || policy)."""
    reference = logprobs(theirs)
    slope = gradient(ours, lambda policy: mean_under(policy, k3(policy, reference)))
    assert torch.allclose(slope, gradient(ours, lambda policy: exact(reference, policy)), atol=1e-9)


@given(logits, logits, logits)
@settings(max_examples=100, deadline=None)
def test_the_loss_of_grpo_has_the_mean_and_the_gradient_of_the_kl(
    ours: list[float], before: list[float], theirs: list[float]
) -> None:
    """Of tokens that an older policy drew, too, as those of an update's later passes are."""
    old, reference = logprobs(before), logprobs(theirs)

    def loss(policy: Tensor) -> Tensor:
        return mean_under(old, kl_loss(policy, old, reference))

    expected = exact(logprobs(ours), reference)
    assert float(loss(logprobs(ours))) == pytest.approx(float(expected), abs=1e-9)
    slope = gradient(ours, loss)
    assert torch.allclose(slope, gradient(ours, lambda policy: exact(policy, reference)), atol=1e-9)


def test_the_loss_of_grpo_keeps_its_gradient_where_the_reference_gives_a_token_far_more() -> None:
    """r = e^40: k3 and 1 - r, which autograd would add up, leave nothing of log r in fp32. Here the gradient is -40."""
    policy = torch.tensor([-40.0], requires_grad=True)
    value = kl_loss(policy, policy.detach(), torch.tensor([0.0]))
    value.sum().backward()
    assert policy.grad is not None
    assert policy.grad.tolist() == [-40.0]
    assert float(value.detach()) == pytest.approx(math.exp(40), rel=1e-5)
    assert math.isfinite(float(kl_loss(torch.tensor([-500.0]), torch.tensor([-500.0]), torch.tensor([0.0]))))


# --- The controller --------------------------------------------------------------------------------------------------


@given(st.floats(0, 10), st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(1, 10**6)), max_size=10))
@settings(max_examples=50, deadline=None)
def test_a_fixed_coefficient_never_changes(start: float, updates: list[tuple[float, int]]) -> None:
    controller = KlController(start)
    for kl, sequences in updates:
        controller.update(kl, sequences)
    assert controller.coefficient == start


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (0.11, 0.202),  # e = 0.11 / 0.1 - 1 = 0.1; 0.2 * (1 + 0.1 * 100 / 1000) = 0.2 * 1.01
        (0.09, 0.198),  # e = -0.1
        (0.10, 0.2),
        (0.12, 0.204),  # e = 0.2, and more does not count
        (9.99, 0.204),
        (0.08, 0.196),  # e = -0.2, and less does not count
        (0.00, 0.196),
        (-3.0, 0.196),  # a mean of k1 may be negative
    ],
)
def test_one_adaptive_update_by_hand(kl: float, expected: float) -> None:
    controller = KlController(0.2, "adaptive", target=0.1, horizon=1000)
    controller.update(kl, 100)
    assert controller.coefficient == pytest.approx(expected, rel=1e-12)


def test_updates_add_up_over_sequences() -> None:
    # e = 0.2 at horizon 1000: 500 sequences are a tenth, then 250 a twentieth: 1 * 1.1 * 1.05 = 1.155
    controller = KlController(1.0, "adaptive", target=1.0, horizon=1000)
    controller.update(5.0, 500)
    controller.update(5.0, 250)
    assert controller.coefficient == pytest.approx(1.155)


@given(st.floats(0.001, 10), st.floats(0.001, 1), st.floats(0.01, 1), st.floats(0.5, 2))
@settings(max_examples=100, deadline=None)
def test_it_steers_a_simulated_run_to_its_target(start: float, pull: float, target: float, power: float) -> None:
    """The simulated KL is pull / coefficient^power: it falls as the coefficient rises."""
    controller = KlController(start, "adaptive", target, horizon=100)
    for _ in range(400):
        controller.update(pull / controller.coefficient**power, 50)
    assert pull / controller.coefficient**power == pytest.approx(target, rel=1e-3)


@given(st.floats(1e-6, 10), st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(1, 100)), max_size=30))
@settings(max_examples=50, deadline=None)
def test_a_coefficient_stays_positive(start: float, updates: list[tuple[float, int]]) -> None:
    controller = KlController(start, "adaptive", horizon=100)
    for kl, sequences in updates:
        controller.update(kl, sequences)
        assert controller.coefficient > 0


def test_a_coefficient_stays_positive_however_many_sequences_an_update_has() -> None:
    controller = KlController(0.1, "adaptive", horizon=10)
    controller.update(0.0, 100)
    assert controller.coefficient > 0
