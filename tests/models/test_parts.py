"""A tree that is computed in parts gives the log-probabilities, gradients and scores of the whole one."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prefine.data.tokens.trees import collate, microbatches
from prefine.models.scoring.cross_encoder import padded_runs
from tests.models.tiny import packed, tree


def test_logprobs_and_gradients_of_parts_are_those_of_the_whole() -> None:
    """20 + 5 x 8 tokens at a budget of 40: three microbatches, whose losses are summed."""
    model = packed("llama")
    whole = replace(tree(20, 8, 7, 8, 6, 8), apart=True)
    weights = torch.linspace(-1, 1, whole.supervised_tokens)

    def computed(max_tokens: int) -> tuple[Tensor, list[Tensor], int]:
        model.zero_grad()
        found = []
        done = 0
        for run in microbatches([whole], max_tokens):
            logprobs = model(collate(run))
            (logprobs * weights[done : done + len(logprobs)]).sum().backward()
            done += len(logprobs)
            found.append(logprobs.detach())
        return torch.cat(found), [p.grad.clone() for p in model.parameters() if p.grad is not None], len(found)

    logprobs, gradients, count = computed(1_000)
    parted, summed, parts = computed(40)
    assert (count, parts) == (1, 3)
    assert torch.allclose(logprobs, parted, atol=1e-5)
    assert gradients
    for one, other in zip(gradients, summed, strict=True):
        assert torch.allclose(one, other, atol=1e-5 * max(1.0, float(one.abs().max())))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 200))
def test_padded_runs_keep_order_and_budget(lengths: list[int], budget: int) -> None:
    runs = padded_runs(lengths, budget)
    assert [place for run in runs for place in run] == list(range(len(lengths)))
    for run in runs:
        assert len(run) == 1 or max(lengths[place] for place in run) * len(run) <= budget


def test_padded_runs_by_hand() -> None:
    assert padded_runs([3, 3, 4, 9, 1], 9) == [range(0, 2), range(2, 3), range(3, 4), range(4, 5)]
    assert padded_runs([5], 1) == [range(0, 1)]
