"""Token values become sums by sequence, rows or whitened values, and sequences become pairs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefine.objectives.masked import padded, paired, per_sequence, whitened


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


# --- Rows ------------------------------------------------------------------------------------------------------------


def test_rows_by_hand() -> None:
    rows, mask = padded(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1, 3]))
    assert rows.tolist() == [[1.0, 0.0, 0.0], [2.0, 3.0, 4.0]]
    assert mask.tolist() == [[True, False, False], [True, True, True]]
    rows, mask = padded(torch.tensor([5.0]), torch.tensor([1]))
    assert (rows.tolist(), mask.tolist()) == ([[5.0]], [[True]])


@given(st.lists(st.lists(st.floats(-5, 5), max_size=6), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_rows_hold_each_token_once_and_nothing_else(sequences: list[list[float]]) -> None:
    """Sequences without tokens as well: their row is empty."""
    values = torch.tensor([value for each in sequences for value in each], dtype=torch.float64)
    rows, mask = padded(values, torch.tensor([len(each) for each in sequences]))
    assert rows.dtype == torch.float64
    assert rows.shape == mask.shape == (len(sequences), max(map(len, sequences)))
    assert [row[there].tolist() for row, there in zip(rows, mask, strict=True)] == sequences
    assert torch.equal(rows[mask], values)
    assert not rows[~mask].any()


def test_rows_pass_the_gradient_on() -> None:
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    rows, _ = padded(values, torch.tensor([2, 1]))
    (rows * torch.tensor([[1.0, 2.0], [4.0, 8.0]])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 2.0, 4.0]


def test_lengths_that_do_not_sum_to_the_tokens_are_refused() -> None:
    with pytest.raises(RuntimeError, match="split_sizes"):
        padded(torch.zeros(3), torch.tensor([1, 1]))


# --- Whitening -------------------------------------------------------------------------------------------------------

# Their deviation is at least 1, so that the 1e-8 added to the variance does not show.
varied = st.lists(st.floats(-50, 50), max_size=20).map(lambda some: [*some, -60.0, 60.0])


def test_whitened_by_hand() -> None:
    # 1 3 5 7: mean 4, variance (9 + 1 + 1 + 9) / 4 = 5; 3 / sqrt 5 = 1.341641, 1 / sqrt 5 = 0.447214
    values = torch.tensor([1.0, 3.0, 5.0, 7.0])
    white = [-1.341641, -0.447214, 0.447214, 1.341641]
    assert whitened(values).tolist() == pytest.approx(white, abs=1e-6)
    assert whitened(values, shift_mean=False).tolist() == pytest.approx([4 + each for each in white], abs=1e-6)


@given(varied)
@settings(max_examples=100, deadline=None)
def test_whitened_values_have_mean_0_and_deviation_1(numbers: list[float]) -> None:
    values = torch.tensor(numbers, dtype=torch.float64)
    white = whitened(values)
    assert white.mean().item() == pytest.approx(0.0, abs=1e-9)
    assert white.std(correction=0).item() == pytest.approx(1.0, abs=1e-7)
    assert (white[values.argsort()].diff() >= 0).all()  # the largest stays the largest


@given(varied)
@settings(max_examples=100, deadline=None)
def test_the_mean_may_stay(numbers: list[float]) -> None:
    values = torch.tensor(numbers, dtype=torch.float64)
    kept = whitened(values, shift_mean=False)
    assert kept.mean().item() == pytest.approx(values.mean().item(), abs=1e-9)
    assert kept.std(correction=0).item() == pytest.approx(1.0, abs=1e-7)
    assert torch.allclose(kept - values.mean(), whitened(values), atol=1e-9)


@given(varied, st.floats(-100, 100), st.floats(1, 100))
@settings(max_examples=50, deadline=None)
def test_whitening_minds_neither_shift_nor_scale(numbers: list[float], shift: float, scale: float) -> None:
    values = torch.tensor(numbers, dtype=torch.float64)
    assert torch.allclose(whitened(values * scale + shift), whitened(values), atol=1e-7)


@given(st.floats(-100, 100), st.integers(1, 30))
@settings(max_examples=50, deadline=None)
def test_whitening_equal_values_gives_nothing_and_stays_finite(value: float, tokens: int) -> None:
    equal = torch.full((tokens,), value, dtype=torch.float64)
    assert whitened(equal).abs().max().item() == pytest.approx(0.0, abs=1e-8)
    assert whitened(equal, shift_mean=False).tolist() == pytest.approx(equal.tolist(), abs=1e-8)
    # In float32 the mean may be some ulps of 100 off, 7.6e-6 each; over sqrt(1e-8) that is well below 1.
    assert whitened(equal.float()).abs().max().item() <= 1


def test_one_token_whitens_to_0() -> None:
    assert whitened(torch.tensor([5.0])).tolist() == [0.0]
    assert whitened(torch.tensor([5.0]), shift_mean=False).tolist() == [5.0]
