"""Rewards and advantages by hand, and against their definitions written as plain loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prefine.objectives.advantage import (
    best_and_worst,
    explained_variance,
    gae,
    grpo,
    returns,
    rloo,
    token_rewards,
    without_signal,
)

Answer = list[tuple[float, float]]

numbers = st.floats(-5, 5)
shares = st.floats(0, 1)  # gamma or lambda
# Answers of one to six tokens, each token a reward and a value.
ragged = st.lists(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6), min_size=1, max_size=5)
# Rewards of n answers to each of P prompts.
groups = st.integers(2, 6).flatmap(
    lambda n: st.lists(st.lists(numbers, min_size=n, max_size=n), min_size=1, max_size=4)
)


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def end_to_end(answers: list[Answer]) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards (T,), values (T,), lengths (S,)."""
    tokens = [token for answer in answers for token in answer]
    lengths = torch.tensor([len(answer) for answer in answers])
    return tensor([reward for reward, _ in tokens]), tensor([value for _, value in tokens]), lengths


def td_errors(answer: Answer, gamma: float) -> list[float]:
    following = [value for _, value in answer[1:]] + [0.0]
    return [reward + gamma * after - value for (reward, value), after in zip(answer, following, strict=True)]


def near(expected: object) -> object:
    return pytest.approx(expected, abs=1e-9)


# --- Rewards of tokens -----------------------------------------------------------------------------------------------


def test_token_rewards_by_hand() -> None:
    # beta 0.5: -0.05 and -0.1 + 1 = 0.9 of the first answer; -0.15 - 2 = -2.15 of the second, one token long
    rewards = token_rewards(torch.tensor([1.0, -2.0]), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([2, 1]), 0.5)
    assert rewards.tolist() == pytest.approx([-0.05, 0.9, -2.15])


def test_without_a_penalty_the_last_token_has_the_whole_score() -> None:
    kl = torch.tensor([0.1, 0.2, 0.3, 0.4])
    rewards = token_rewards(torch.tensor([7.0, 8.0]), kl, torch.tensor([1, 3]), 0.0)
    assert rewards.tolist() == [7.0, 0.0, 0.0, 8.0]
    assert kl.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])  # the caller's own, as it was


@given(st.lists(st.tuples(numbers, st.lists(numbers, min_size=1, max_size=6)), min_size=1, max_size=5), shares)
@settings(max_examples=100, deadline=None)
def test_an_answers_rewards_sum_to_its_score_less_its_penalty(
    answers: list[tuple[float, list[float]]], beta: float
) -> None:
    lengths = torch.tensor([len(kl) for _, kl in answers])
    kl = tensor([each for _, tokens in answers for each in tokens])
    rewards = token_rewards(tensor([score for score, _ in answers]), kl, lengths, beta)
    assert rewards.shape == kl.shape
    sums = returns(rewards, lengths)
    assert sums.tolist() == near([score - beta * sum(tokens) for score, tokens in answers])


def test_returns_by_hand() -> None:
    assert returns(torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([3, 1])).tolist() == [7.0, 8.0]
    assert returns(torch.tensor([5.0]), torch.tensor([1])).tolist() == [5.0]


# --- Generalised advantage estimates ---------------------------------------------------------------------------------


def test_gae_by_hand() -> None:
    # Rewards 0 0 1, values 1/2, gamma = lambda = 1/2. The last delta is 1 - 1/2 = 1/2, those before 1/4 - 1/2 = -1/4.
    # From the end: 1/2; -1/4 + 1/4 * 1/2 = -1/8; -1/4 + 1/4 * -1/8 = -9/32. A second answer of one token: 2 - 3 = -1.
    rewards, values = torch.tensor([0.0, 0.0, 1.0, 2.0]), torch.tensor([0.5, 0.5, 0.5, 3.0])
    assert gae(rewards, values, torch.tensor([3, 1]), 0.5, 0.5).tolist() == [-9 / 32, -1 / 8, 1 / 2, -1.0]


def test_one_answer_of_one_token() -> None:
    assert gae(torch.tensor([2.0]), torch.tensor([0.5]), torch.tensor([1]), 0.9, 0.9).tolist() == [1.5]


@given(ragged, shares, shares)
@settings(max_examples=200, deadline=None)
def test_gae_is_the_papers_double_sum(answers: list[Answer], gamma: float, lam: float) -> None:
    expected = []
    for answer in answers:
        deltas = td_errors(answer, gamma)
        for start in range(len(answer)):
            expected.append(sum((gamma * lam) ** (t - start) * deltas[t] for t in range(start, len(answer))))
    assert gae(*end_to_end(answers), gamma, lam).tolist() == near(expected)


@given(ragged)
@settings(max_examples=50, deadline=None)
def test_undiscounted_gae_is_the_return_to_go_less_the_value(answers: list[Answer]) -> None:
    expected = [
        sum(reward for reward, _ in answer[place:]) - answer[place][1]
        for answer in answers
        for place in range(len(answer))
    ]
    assert gae(*end_to_end(answers), 1.0, 1.0).tolist() == near(expected)


@given(ragged, shares)
@settings(max_examples=50, deadline=None)
def test_gae_without_lambda_is_the_td_error(answers: list[Answer], gamma: float) -> None:
    expected = [error for answer in answers for error in td_errors(answer, gamma)]
    assert gae(*end_to_end(answers), gamma, 0.0).tolist() == near(expected)


@given(ragged, shares, shares)
@settings(max_examples=50, deadline=None)
def test_a_critic_that_knows_all_that_is_to_come_leaves_no_advantage(
    answers: list[Answer], gamma: float, lam: float
) -> None:
    """Where V(s_t) = r_t + gamma V(s_(t+1)) every delta is 0, and so is every sum of them."""
    rewards, values, lengths = end_to_end(answers)
    place = len(values)
    for answer in reversed(answers):
        following = 0.0
        for reward, _ in reversed(answer):
            place -= 1
            following = reward + gamma * following
            values[place] = following
    assert gae(rewards, values, lengths, gamma, lam).abs().max().item() == near(0.0)


@given(ragged, shares, shares)
@settings(max_examples=100, deadline=None)
def test_an_answer_in_company_has_the_advantages_that_it_has_alone(
    answers: list[Answer], gamma: float, lam: float
) -> None:
    alone = [gae(*end_to_end([answer]), gamma, lam) for answer in answers]
    assert torch.equal(gae(*end_to_end(answers), gamma, lam), torch.cat(alone))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("lengths", [[1, 3, 2], [3, 1, 2], [2, 2, 2]])
def test_a_number_that_is_none_stays_in_its_answer(bad: float, lengths: list[int]) -> None:
    values = torch.zeros(6)
    values[lengths[0]] = bad  # the first token of the second answer
    advantages = gae(torch.ones(6), values, torch.tensor(lengths), 1.0, 0.95).split(lengths)
    assert not advantages[1].isfinite().all()
    assert advantages[0].isfinite().all()
    assert advantages[2].isfinite().all()


# --- Advantages among siblings ---------------------------------------------------------------------------------------


def test_rloo_by_hand() -> None:
    # 1 - (2 + 6) / 2 = -3; 2 - (1 + 6) / 2 = -1.5; 6 - (1 + 2) / 2 = 4.5. Equal ones: 0.
    advantages = rloo(torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]]))
    assert advantages[0].tolist() == pytest.approx([-3.0, -1.5, 4.5])
    assert advantages[1].tolist() == [0.0, 0.0, 0.0]


@given(groups)
@settings(max_examples=100, deadline=None)
def test_rloo_leaves_one_out(rewards: list[list[float]]) -> None:
    expected = []
    for group in rewards:
        for place, reward in enumerate(group):
            others = group[:place] + group[place + 1 :]
            expected.append(reward - sum(others) / len(others))
    assert rloo(tensor(rewards)).flatten().tolist() == near(expected)


def test_rloo_has_the_gradient_of_the_expected_reward() -> None:
    """Exactly, over all 27 draws of three answers from a policy of three: the baseline does not bias it."""
    logits = tensor([0.5, -0.3, 0.1]).requires_grad_()
    prizes = tensor([1.0, -2.0, 4.0])
    logprobs = logits.log_softmax(0)
    estimate = torch.zeros((), dtype=torch.float64)
    for draw in itertools.product(range(3), repeat=3):
        drawn = logprobs[list(draw)]
        estimate = estimate + drawn.sum().exp().detach() * (rloo(prizes[None, list(draw)])[0] * drawn).mean()
    (estimated,) = torch.autograd.grad(estimate, logits, retain_graph=True)
    (exact,) = torch.autograd.grad((logprobs.exp() * prizes).sum(), logits)
    assert estimated.tolist() == near(exact.tolist())


def test_grpo_by_hand() -> None:
    # 0 and 2: mean 1, deviation sqrt(1 + 1) = 1.414214 (one degree of freedom): 1 / (1.414214 + 0.0001) = 0.707057.
    # 1 2 6: mean 3, deviation sqrt((4 + 1 + 9) / 2) = 2.645751: -2, -1 and 3 over 2.645851.
    assert grpo(torch.tensor([[0.0, 2.0]]))[0].tolist() == pytest.approx([-0.707057, 0.707057], abs=1e-6)
    assert grpo(torch.tensor([[1.0, 2.0, 6.0]]))[0].tolist() == pytest.approx(
        [-0.755900, -0.377950, 1.133850], abs=1e-5
    )


def test_the_best_and_the_worst() -> None:
    """The first of equals; none of a group whose answers are all equal."""
    rewards = torch.tensor([[0.0, 2.0, 1.0], [3.0, 3.0, 1.0], [1.0, 0.0, 0.0], [2.0, 2.0, 2.0]])
    assert best_and_worst(rewards).tolist() == [[-1, 1, 0], [1, 0, -1], [1, -1, 0], [0, 0, 0]]


def test_what_grpo_divides_by() -> None:
    """0 2 and 4 8: -1, 1, -2 and 2; all four have mean 3.5 and deviation sqrt(35 / 3) = 3.415650."""
    rewards = torch.tensor([[0.0, 2.0], [4.0, 8.0]])
    assert grpo(rewards, "none").tolist() == [[-1.0, 1.0], [-2.0, 2.0]]
    by_all = torch.tensor([[-0.292762, 0.292762], [-0.585523, 0.585523]])
    torch.testing.assert_close(grpo(rewards, "update"), by_all, rtol=0, atol=1e-6)


@given(groups)
@settings(max_examples=100, deadline=None)
def test_grpo_has_mean_0_and_at_most_deviation_1(rewards: list[list[float]]) -> None:
    advantages = grpo(tensor(rewards))
    assert advantages.mean(1).tolist() == pytest.approx([0.0] * len(rewards), abs=1e-9)
    assert float(advantages.std(1).max()) <= 1 + 1e-9


@given(groups)
@settings(max_examples=50, deadline=None)
def test_a_prompts_advantages_do_not_depend_on_other_prompts(rewards: list[list[float]]) -> None:
    for advantage in (rloo, grpo):
        alone = torch.cat([advantage(tensor([group])) for group in rewards])
        assert advantage(tensor(rewards)).flatten().tolist() == near(alone.flatten().tolist())


@given(groups, st.floats(-100, 100), st.floats(1, 100))
@settings(max_examples=50, deadline=None)
def test_neither_minds_a_shift_and_grpo_hardly_a_scale(rewards: list[list[float]], shift: float, scale: float) -> None:
    at = tensor(rewards).round(decimals=1)  # deviations are 0 or well above the 1e-4 that is added to them
    assert rloo(at + shift).flatten().tolist() == pytest.approx(rloo(at).flatten().tolist(), abs=1e-9)
    assert grpo(at + shift).flatten().tolist() == pytest.approx(grpo(at).flatten().tolist(), abs=1e-6)
    assert grpo(at * scale).flatten().tolist() == pytest.approx(grpo(at).flatten().tolist(), rel=0.01, abs=1e-6)


@given(st.integers(-100, 100), st.integers(2, 16))
@settings(max_examples=50, deadline=None)
def test_equal_whole_rewards_are_no_advantage(reward: int, siblings: int) -> None:
    equal = torch.full((2, siblings), float(reward))
    assert torch.equal(rloo(equal), torch.zeros_like(equal))
    assert torch.equal(grpo(equal), torch.zeros_like(equal))


@pytest.mark.parametrize("reward", [0.1, 1.3, 100.1, 1000.1])
def test_equal_rewards_of_any_size_are_no_advantage_in_grpo(reward: float) -> None:
    assert grpo(torch.full((1, 7), reward)).abs().max().item() == pytest.approx(0.0, abs=1e-6)


@given(groups)
@settings(max_examples=50, deadline=None)
def test_groups_without_signal_are_those_whose_advantages_are_0(rewards: list[list[float]]) -> None:
    at = tensor(rewards).round(decimals=1)
    at[0] = at[0, 0]
    assert torch.equal(without_signal(at), (grpo(at) == 0).all(1))
    assert bool(without_signal(at)[0])
    assert grpo(at.float())[0].tolist() == [0.0] * at.shape[1]


# --- The critic ------------------------------------------------------------------------------------------------------


def test_explained_variance_by_hand() -> None:
    # Targets 0 and 2 vary by 1; errors 0 and 1 by 1/4: 1 - 1/4 = 3/4. Turned round, errors are -2 and 2: 1 - 4 = -3.
    targets = torch.tensor([0.0, 2.0])
    assert explained_variance(torch.tensor([0.0, 1.0]), targets) == 0.75
    assert explained_variance(torch.tensor([2.0, 0.0]), targets) == -3.0


@given(st.lists(numbers, min_size=2, max_size=20), numbers)
@settings(max_examples=50, deadline=None)
def test_a_perfect_critic_explains_all_and_a_constant_one_nothing(numbers_: list[float], constant: float) -> None:
    targets = tensor(numbers_).round(decimals=2)
    targets[0] += 20  # so that they vary
    assert explained_variance(targets, targets) == 1.0
    assert explained_variance(torch.full_like(targets, constant), targets) == pytest.approx(0.0, abs=1e-9)
    assert explained_variance(targets.mean().expand_as(targets), targets) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("targets", [[2.0, 2.0, 2.0, 2.0], [0.0] * 7, [-3.5]])
def test_of_targets_that_do_not_vary_nothing_is_explained(targets: list[float]) -> None:
    values = torch.arange(len(targets), dtype=torch.float32)
    assert explained_variance(values, torch.tensor(targets)) == 0.0


@pytest.mark.parametrize("target", [0.1, 1.3, 100.1])
def test_of_equal_targets_of_any_size_nothing_is_explained(target: float) -> None:
    assert explained_variance(torch.arange(7.0), torch.full((7,), target)) == 0.0
