"""Sums over counted tokens. Log-probabilities are already selected, so a "mask" here is a grouping of tokens.

T counted tokens, S sequences, B pairs. A pair's chosen answer is sequence 2b, its rejected one 2b + 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


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


def padded(values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Token values (T,) of S sequences end to end, as rows (S, L) padded with 0, and a mask (S, L), True for tokens."""
    rows = nn.utils.rnn.pad_sequence(list(torch.split(values, lengths.tolist())), batch_first=True)
    return rows, torch.arange(rows.shape[1], device=lengths.device) < lengths[:, None]


def whitened(values: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Values (T,) scaled to standard deviation 1, and moved to mean 0 unless `shift_mean` is False.

    The variance is the population's, with 1e-8 added (Huang et al. 2024, arXiv 2403.17031, detail 17: rewards keep
    their mean, advantages do not).
    """
    mean = values.mean()
    scaled = (values - mean) * torch.rsqrt(values.var(correction=0) + 1e-8)
    return scaled if shift_mean else scaled + mean
