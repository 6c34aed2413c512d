"""Sums over what counts. Log-probabilities arrive already selected, so a "mask" here is a grouping of tokens.

T counted tokens, S sequences, B pairs. A pair's chosen answer is sequence 2b, its rejected one 2b + 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Paired(NamedTuple):
    """One value per answer of each pair: (B,) each."""

    chosen: Tensor
    rejected: Tensor


def per_sequence(values: Tensor, sequence: Tensor, sequences: int) -> Tensor:
    """Sum token values (T,) over the sequence each belongs to: (S,), in the values' type."""
    return torch.zeros(sequences, dtype=values.dtype, device=values.device).index_add(0, sequence, values)


def paired(per_sequence: Tensor) -> Paired:
    """Split (2B,) values of alternating chosen and rejected answers."""
    pairs = per_sequence.view(-1, 2)
    return Paired(pairs[:, 0], pairs[:, 1])
