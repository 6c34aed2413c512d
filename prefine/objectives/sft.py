"""Supervised fine-tuning: the negative log-likelihood of demonstrated tokens."""

from __future__ import annotations

from torch import Tensor


def token_nll(logprobs: Tensor, total_tokens: int) -> Tensor:
    """Mean negative log-likelihood over all tokens that count in the step (Ouyang et al. 2022, arXiv 2203.02155, 3.5).

    Args:
        logprobs: (T,) log-probabilities of this microbatch's tokens.
        total_tokens: tokens that count in the whole optimiser step, on all processes and in all microbatches, so that
            summing the microbatches' losses gives the step's mean whatever the split.

    Returns: scalar, nats a token.
    """
    return -logprobs.sum() / total_tokens
