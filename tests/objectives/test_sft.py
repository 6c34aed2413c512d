"""Negative log-likelihood by hand."""

from __future__ import annotations

import math

import pytest
import torch

from prefine.objectives.sft import token_nll


def test_by_hand() -> None:
    # Probabilities 1/2, 1/4, 1/8: ln 2, 2 ln 2, 3 ln 2.
    found = token_nll(torch.tensor([0.5, 0.25, 0.125]).log())
    assert found.tolist() == pytest.approx([math.log(2), 2 * math.log(2), 3 * math.log(2)])


def test_the_gradient_of_each_token_is_minus_one() -> None:
    logprobs = torch.tensor([-1.0, -3.0], requires_grad=True)
    token_nll(logprobs).sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [-1.0, -1.0]
