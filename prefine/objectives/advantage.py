"""Advantages from rewards: how much better a token, or an answer, was than expected."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from prefine.objectives.masked import padded


def token_rewards(scores: Tensor, kl: Tensor, lengths: Tensor, coefficient: float) -> Tensor:
    """-beta KL at each token, and the answer's score at its last one (Ziegler et al. 2019, arXiv 1909.08593, eq. 2).

    Args:
        scores: (S,) one per answer.
        kl: (T,) nats, tokens of all answers end to end.
        lengths: (S,) int64 tokens per answer, at least 1 each; their sum is T.
        coefficient: beta.

    Returns: (T,).
    """
    rewards = -coefficient * kl
    return rewards.index_add(0, lengths.cumsum(0) - 1, scores.to(rewards.dtype))


def gae(rewards: Tensor, values: Tensor, lengths: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2015, arXiv 1506.02438, eq. 16).

    A_t = sum over l of (gamma lambda)^l delta_(t+l),  delta_t = r_t + gamma V(s_(t+1)) - V(s_t),  V = 0 after the end.

    Args:
        rewards: (T,) of S answers' tokens end to end.
        values: (T,) V(s_t), the critic's prediction before token t.
        lengths: (S,) int64.
        gamma: discount.
        lam: lambda.

    Returns: (T,).
    """
    value, mask = padded(values, lengths)
    reward, _ = padded(rewards, lengths)
    following = torch.nn.functional.pad(value[:, 1:], (0, 1))  # padding is 0, and so is the value after the end
    delta = reward + gamma * following - value
    advantage = torch.zeros_like(delta)
    running = torch.zeros_like(delta[:, 0])
    for place in reversed(range(delta.shape[1])):
        running = delta[:, place] + gamma * lam * running  # padding is 0 on both sides
        advantage[:, place] = running
    return advantage[mask]


def returns(rewards: Tensor, lengths: Tensor) -> Tensor:
    """(S,): the sum of each answer's token rewards."""
    row, _ = padded(rewards, lengths)
    return row.sum(1)


def rloo(rewards: Tensor) -> Tensor:
    """An answer's reward minus the mean of its siblings' (Ahmadian et al. 2024, arXiv 2402.14740, eq. 8).

    The rewards may include a KL penalty: nothing is divided, so its size does not depend on the scores.

    Args:
        rewards: (P, n) of n answers to each of P prompts, n at least 2.

    Returns: (P, n).
    """
    siblings = rewards.shape[1]
    return _centred(rewards) * (siblings / (siblings - 1))


def grpo(rewards: Tensor, std: Literal["group", "update", "none"] = "group") -> Tensor:
    """An answer's reward minus its group's mean, over the deviation (Shao et al. 2024, arXiv 2402.03300, 4.1.2).

    The rewards must not include a KL penalty. The division gives every group the same spread: in a group with equal
    scores it would scale the penalty's noise up to size 1. The penalty is part of the loss (`kl.kl_loss`).

    Args:
        rewards: (P, n) of n answers to each of P prompts, n at least 2. If all are equal the advantages are exactly 0.
        std: what to divide by: the deviation of the group's rewards, or of all P n (Liu et al. 2025, arXiv 2508.08221,
            sec. 4.1); none divides by nothing (Dr. GRPO, Liu et al. 2025, arXiv 2503.20783, sec. 3.2).

    Returns: (P, n).
    """
    centred = _centred(rewards.double())
    if std == "none":
        return centred.to(rewards.dtype)
    spread = centred.std(1, keepdim=True) if std == "group" else rewards.double().std()
    return (centred / (spread + 1e-4)).to(rewards.dtype)


def _centred(rewards: Tensor) -> Tensor:
    """(P, n) minus the mean of each group; exactly 0 if all are equal, although their rounded mean may differ."""
    differences = rewards - rewards[:, :1]
    return differences - differences.mean(1, keepdim=True)


def without_signal(rewards: Tensor) -> Tensor:
    """(P,) bool: the groups of (P, n) rewards that are all equal, with advantages 0 (arXiv 2503.14476, 3.2)."""
    return rewards.amin(1) == rewards.amax(1)


def best_and_worst(rewards: Tensor) -> Tensor:
    """(P, n): 1 for the best answer of each group, -1 for the worst one, 0 for others; all 0 if all are equal.

    Of equally good answers the first one is the best, of equally bad ones the first one the worst. With n = 2 these are
    the pairs of online DPO (Guo et al. 2024, arXiv 2402.04792, alg. 1).

    Args:
        rewards: (P, n) of n answers to each of P prompts, n at least 2.
    """
    signs = torch.zeros_like(rewards)
    signs.scatter_(1, rewards.argmax(1, keepdim=True), 1.0)
    signs.scatter_(1, rewards.argmin(1, keepdim=True), -1.0)
    return torch.where(without_signal(rewards)[:, None], 0.0, signs)


def explained_variance(values: Tensor, targets: Tensor) -> float:
    """1 - Var(target - value) / Var(target): 1 if the critic is right up to a constant, 0 if it is no better
    than a constant.

    Also 0 if the targets do not vary.
    """
    values, targets = values.double(), targets.double()
    if targets.min() == targets.max():
        return 0.0
    return float(1 - (targets - values).var(correction=0) / targets.var(correction=0))
