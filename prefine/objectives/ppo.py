"""Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347). Token tensors (T,) in, (T,) out."""

from __future__ import annotations

import torch
from torch import Tensor

from prefine.objectives.kl import importance_ratio


def policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip)), ratio = pi / pi_old (arXiv 1707.06347, eq. 7, negated).

    At ratio 1 its gradient is that of -A log pi: REINFORCE with a baseline.
    """
    ratio = importance_ratio(logprobs, old_logprobs)
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))


def policy_clipped(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """(T,) bool: tokens whose loss is clipped, so that they have no gradient."""
    ratio = importance_ratio(logprobs, old_logprobs)
    return ((advantages > 0) & (ratio > 1 + clip)) | ((advantages < 0) & (ratio < 1 - clip))


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
