"""Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347). Token tensors (T,) in, (T,) out."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from prefine.objectives.kl import importance_ratio


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: float, clip_high: float | None = None
) -> Tensor:
    """max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip_high)), ratio = pi / pi_old (arXiv 1707.06347, eq. 7, negated).

    At ratio 1 its gradient is that of -A log pi: REINFORCE with a baseline.

    Args:
        clip_high: the range above 1, if it is another one than below (DAPO, Yu et al. 2025, arXiv 2503.14476, eq. 10).
    """
    ratio = importance_ratio(logprobs, old_logprobs)
    kept = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    return torch.maximum(-advantages * ratio, -advantages * kept)


def policy_clipped(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: float, clip_high: float | None = None
) -> Tensor:
    """(T,) bool: tokens whose loss is clipped, so that they have no gradient."""
    ratio = importance_ratio(logprobs, old_logprobs)
    above = ratio > 1 + (clip if clip_high is None else clip_high)
    return ((advantages > 0) & above) | ((advantages < 0) & (ratio < 1 - clip))


def average_weights(
    average: Literal["tokens", "answers", "max_length"], lengths: Tensor, counted: Tensor, max_length: int
) -> Tensor:
    """Weights (T,) of tokens, so that the mean of weighted losses over all T is the average that is asked for.

    With A answers that count, of lengths |a| (Yu et al. 2025, arXiv 2503.14476, eq. 8 and 12; Liu et al. 2025,
    arXiv 2503.20783, sec. 3.2):

        tokens       sum over their tokens / sum of |a|
        answers      sum over answers of (sum over the answer's tokens / |a|) / A
        max_length   sum over their tokens / (A max_length)

    Args:
        lengths: (S,) int64 tokens of each answer of an optimiser step; their sum is T.
        counted: (S,) bool, answers that count; at least one. Tokens of others weigh 0, and the averages are over the
            rest.
        max_length: the most tokens that an answer can have.
    """
    total, answers = lengths.sum(), counted.sum()
    shares = {
        "tokens": torch.ones(len(lengths)) / lengths[counted].sum(),
        "answers": 1 / (lengths * answers),
        "max_length": torch.ones(len(lengths)) / (answers * max_length),
    }
    return (shares[average] * counted * total).float().repeat_interleave(lengths)


def value_loss(values: Tensor, old_values: Tensor, targets: Tensor, clip: float | None) -> Tensor:
    """max((V - R)^2, (V_clipped - R)^2) / 2, V kept within `clip` of the old one (arXiv 2403.17031, detail 21).

    With None for `clip` it is the plain squared error.
    """
    loss = (values - targets) ** 2
    if clip is not None:
        near = old_values + (values - old_values).clamp(-clip, clip)
        loss = torch.maximum(loss, (near - targets) ** 2)
    return loss / 2


def value_clipped(values: Tensor, old_values: Tensor, targets: Tensor, clip: float | None) -> Tensor:
    """(T,) bool: tokens whose value loss is clipped, so that they have no gradient."""
    if clip is None:
        return torch.zeros_like(values, dtype=torch.bool)
    moved = values - old_values
    near = old_values + moved.clamp(-clip, clip)
    return (moved.abs() > clip) & ((near - targets) ** 2 > (values - targets) ** 2)


def approximate_kl(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """(T,) how far the update has moved the policy: k3 of KL(pi_old || pi), nats, on tokens that pi_old drew."""
    log_ratio = logprobs - old_logprobs
    return torch.expm1(log_ratio) - log_ratio
