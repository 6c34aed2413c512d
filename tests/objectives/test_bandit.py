"""The objectives together learn a bandit whose best arm is known: five arms, answers of one token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prefine.objectives.advantage import gae, grpo, returns, rloo, token_rewards
from prefine.objectives.kl import k1
from prefine.objectives.masked import whitened
from prefine.objectives.ppo import policy_loss, value_loss

PRIZES = torch.tensor([0.1, 0.3, 1.0, 0.5, 0.7])  # a mean a pull, with noise on top
PROMPTS, SIBLINGS, UPDATES, PASSES = 8, 4, 150, 2
PULLS = PROMPTS * SIBLINGS
BETA, CLIP, RATE = 0.01, 0.2, 0.3


def by_siblings(kind: str, rewards: Tensor) -> Tensor:
    """(PULLS,) from the token rewards, each answer's one."""
    sums = returns(rewards, torch.ones(PULLS, dtype=torch.int64)).view(PROMPTS, SIBLINGS)
    return (rloo(sums) if kind == "rloo" else grpo(sums)).flatten()


def learned(kind: str, seed: int) -> float:
    """The expected prize of the trained policy, exactly. It starts from all arms alike: 0.52."""
    draw = torch.Generator().manual_seed(seed)
    logits, baseline = torch.zeros(5, requires_grad=True), torch.zeros(1, requires_grad=True)
    lengths, reference = torch.ones(PULLS, dtype=torch.int64), logits.detach().log_softmax(0)
    for _ in range(UPDATES):
        old_policy, old_value = logits.detach().log_softmax(0), baseline.detach().expand(PULLS)
        arms = torch.multinomial(old_policy.exp(), PULLS, replacement=True, generator=draw)
        scores = PRIZES[arms] + 0.2 * torch.randn(PULLS, generator=draw)
        old = old_policy[arms]
        rewards = token_rewards(scores, k1(old, reference[arms]), lengths, BETA)
        if kind == "gae":
            advantages = gae(rewards, old_value, lengths, 1.0, 0.95)
            targets = advantages + old_value
            advantages = whitened(advantages)
        else:
            advantages, targets = by_siblings(kind, rewards), old_value
        for _ in range(PASSES):
            loss = policy_loss(logits.log_softmax(0)[arms], old, advantages, CLIP).mean()
            loss = loss + value_loss(baseline.expand(PULLS), old_value, targets, CLIP).mean()
            slopes = torch.autograd.grad(loss, [logits, baseline])
            with torch.no_grad():
                logits -= RATE * slopes[0]
                baseline -= RATE * slopes[1]
    if kind == "gae":
        assert baseline.item() == pytest.approx(1.0, abs=0.15)  # the critic has learned what a pull now brings
    return float((logits.detach().softmax(0) * PRIZES).sum())


@pytest.mark.parametrize("kind", ["gae", "rloo", "grpo"])
def test_the_best_arm_is_found(kind: str) -> None:
    assert learned(kind, seed=0) >= 0.95 * float(PRIZES.max())
