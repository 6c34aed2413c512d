"""Token values become sums by sequence, and sequences become pairs."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefine.objectives.masked import paired, per_sequence


def test_sums_by_hand() -> None:
    # Tokens of sequences 0, 0, 2, 2, 2: -1 - 2 = -3; sequence 1 has none; -4 - 8 - 16 = -28.
    values = torch.tensor([-1.0, -2.0, -4.0, -8.0, -16.0])
    sums = per_sequence(values, torch.tensor([0, 0, 2, 2, 2]), 4)
    assert sums.tolist() == [-3.0, 0.0, -28.0, 0.0]


def test_pairs_by_hand() -> None:
    chosen, rejected = paired(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert (chosen.tolist(), rejected.tolist()) == ([1.0, 3.0], [2.0, 4.0])
    assert paired(torch.zeros(0)).chosen.shape == (0,)


@given(st.lists(st.tuples(st.integers(-100, 100), st.integers(0, 4)), max_size=30))
@settings(max_examples=50, deadline=None)
def test_each_token_counts_once_and_in_its_sequence(tokens: list[tuple[int, int]]) -> None:
    values = torch.tensor([value for value, _ in tokens], dtype=torch.float64)
    sequence = torch.tensor([place for _, place in tokens], dtype=torch.int64)
    sums = per_sequence(values, sequence, 5)
    assert sums.dtype == torch.float64
    assert sums.tolist() == [sum(value for value, place in tokens if place == each) for each in range(5)]


def test_the_gradient_of_a_sum_is_one_for_each_of_its_tokens() -> None:
    values = torch.tensor([-1.0, -2.0, -4.0], requires_grad=True)
    sums = per_sequence(values, torch.tensor([1, 0, 1]), 2)
    (sums * torch.tensor([10.0, 3.0])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [3.0, 10.0, 3.0]
