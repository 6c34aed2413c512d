"""Supervised fine-tuning: the negative log-likelihood of demonstrated tokens."""

from __future__ import annotations

from torch import Tensor


def token_nll(logprobs: Tensor) -> Tensor:
    """Negative log-likelihood of each token, (T,) nats (Ouyang et al. 2022, arXiv 2203.02155, 3.5).

    Args:
        logprobs: (T,) log-probabilities of the supervised tokens.
    """
    return -logprobs
