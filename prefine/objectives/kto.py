"""Kahneman-Tversky optimisation: losses of single answers that people liked or disliked.

Ethayarajh et al. 2024 (arXiv 2402.01306). `log_ratio` is log pi(y|x) - log pi_ref(y|x), summed over an answer's tokens,
nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """Weights of the losses of liked (lambda_D) and of disliked answers (lambda_U), eq. 8."""

    desirable: float = 1.0
    undesirable: float = 1.0


def kto(log_ratio: Tensor, up: Tensor, beta: float, baseline: float, weights: Weights) -> Tensor:
    """lambda_y - v(x, y) of eq. 8: lambda_D (1 - sigma(beta (h - z_0))) of liked answers, lambda_U (1 - sigma(beta (z_0
    - h))) of disliked ones.

    With baseline 0 it is the unpaired form of APO-zero (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7).

    Args:
        log_ratio: (B,) h, with gradient.
        up: (B,) bool, True for liked answers.
        beta: strength of the pull towards the reference.
        baseline: z_0, see `kl_baseline`, nats.
        weights: of the two kinds of answers.

    Returns: (B,) losses.
    """
    moved = beta * (log_ratio - baseline)
    return torch.where(
        up, weights.desirable * torch.sigmoid(-moved), weights.undesirable * torch.sigmoid(moved)
    )  # 1 - sigma(x) is sigma(-x)


def kl_baseline(mean_log_ratio: float) -> float:
    """z_0, the estimate of KL(pi || pi_ref): the mean log-ratio of mismatched answers, at least 0 (sec. 4.1), nats.

    A mismatched answer is one to another prompt of the same batch. No gradient flows through it.
    """
    return max(0.0, mean_log_ratio)
