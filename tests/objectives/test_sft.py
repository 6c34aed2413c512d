"""The mean over all tokens of a step, whatever the split into microbatches."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefine.objectives.sft import token_nll


def test_by_hand() -> None:
    # Probabilities 1/2, 1/4, 1/8: (ln 2 + 2 ln 2 + 3 ln 2) / 3 = 2 ln 2 = 1.386294
    logprobs = torch.tensor([0.5, 0.25, 0.125]).log()
    assert float(token_nll(logprobs, 3)) == pytest.approx(2 * math.log(2))
    assert float(token_nll(logprobs, 6)) == pytest.approx(math.log(2))  # half of a step of six tokens


def test_the_gradient_is_minus_one_over_the_steps_tokens() -> None:
    logprobs = torch.tensor([-1.0, -3.0], requires_grad=True)
    token_nll(logprobs, 5).backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-0.2, -0.2])


@given(st.lists(st.floats(-20, 0), min_size=1, max_size=20), st.data())
@settings(max_examples=50, deadline=None)
def test_microbatches_of_any_size_sum_to_the_steps_mean(values: list[float], data: st.DataObject) -> None:
    whole = torch.tensor(values, dtype=torch.float64)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=3)))
    parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(values)], strict=True)]
    summed = sum(float(token_nll(part, len(values))) for part in parts)
    assert summed == pytest.approx(-float(whole.mean()), abs=1e-12)
