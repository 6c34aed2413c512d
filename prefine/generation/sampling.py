"""Chooses tokens from logits: each sequence has its own settings and random numbers.

A sequence's random numbers depend on its seed alone, one per token, so its tokens do not depend on the rest of the
batch. Tokens are drawn by inverting the distribution function (Devroye 1986, ch. 3.2): that takes one uniform number
per token instead of one per vocabulary entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from prefine.errors import NotFiniteError
from prefine.recipe.sections import LARGEST_TEMPERATURE

# Vocabulary entries per block of summed probabilities: two short searches instead of one long sum.
_BLOCK = 256
# Beyond these, logits of a real model are no longer finite in float32.
_LEAST_PENALTY, _LARGEST_PENALTY = 0.001, 1000
# OpenAI's limits for presence and frequency penalties, and for a token's bias.
_LARGEST_DEDUCTION, _LARGEST_BIAS = 2.0, 100.0


@dataclass(frozen=True)
class Sampling:
    """How a sequence is generated.

    Attributes:
        max_new_tokens: the most new tokens, including the end of turn; 0 only computes the prompt (see Request).
        temperature: logits are divided by it; 0 always takes the most likely token.
        top_k: draw from this many most likely tokens only; 0: from all.
        top_p: draw from the most likely tokens with this total probability (Holtzman et al. 2019, arXiv 1904.09751).
        min_p: draw from tokens with at least this share of the highest probability (arXiv 2407.01082).
        repetition_penalty: logits of tokens that occur in prompt or answer are divided by it, or multiplied if negative
            (Keskar et al. 2019, arXiv 1909.05858, sec. 4.1).
        stop: the text ends before the first of these.
        seed: seed of the random numbers.
        presence_penalty: subtracted from the logit of every token that was generated before; the prompt does not count.
        frequency_penalty: subtracted from that logit once for each time that the token was generated. Both penalties as
            in OpenAI's API.
        logit_bias: numbers from -100 to 100 to add to logits, by token id.

    Raises:
        ValueError: a value is out of its range.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        rules = {
            "max_new_tokens": (self.max_new_tokens >= 0, "0 or more"),
            "temperature": (0 <= self.temperature <= LARGEST_TEMPERATURE, f"from 0 to {LARGEST_TEMPERATURE}"),
            "top_k": (self.top_k >= 0, "0 (all) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0, at most 1"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "repetition_penalty": (
                _LEAST_PENALTY <= self.repetition_penalty <= _LARGEST_PENALTY,
                f"from {_LEAST_PENALTY} to {_LARGEST_PENALTY}",
            ),
            "stop": (all(self.stop), "texts that are not empty"),
            "presence_penalty": _within(self.presence_penalty, _LARGEST_DEDUCTION),
            "frequency_penalty": _within(self.frequency_penalty, _LARGEST_DEDUCTION),
            "logit_bias": (
                all(token >= 0 and abs(bias) <= _LARGEST_BIAS for token, bias in self.logit_bias),
                f"token ids, each with a number from -{_LARGEST_BIAS:g} to {_LARGEST_BIAS:g}",
            ),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {rule}")

    @property
    def filtered(self) -> bool:
        """Whether some tokens are excluded from drawing."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)

    @cached_property
    def changes_logits(self) -> bool:
        """Whether a penalty or a bias changes the logits before the temperature."""
        deducted = self.presence_penalty or self.frequency_penalty
        return self.repetition_penalty != 1 or bool(deducted or self.logit_bias)


def _within(value: float, limit: float) -> tuple[bool, str]:
    return abs(value) <= limit, f"from -{limit:g} to {limit:g}"


class Draws:
    """The uniform random numbers of one sequence, one per token. They depend on its seed alone.

    NumPy draws them: they are the same on every device, and all bits of a seed count.
    """

    def __init__(self, seed: int, count: int) -> None:
        self._numbers: list[float] = np.random.default_rng(seed % (1 << 64)).random(count).tolist()

    def __getitem__(self, place: int) -> float:
        return self._numbers[place]


@dataclass(frozen=True)
class NextToken:
    """The inputs for a sequence's next token.

    Attributes:
        sampling: its settings.
        uniform: its random number in [0, 1).
        seen: token ids so far, prompt included; needed only with a repetition penalty.
        generated: token ids after the prompt; needed only with a presence or frequency penalty.
        allowed: (V,) bool, the tokens that may come next; None for all.
    """

    sampling: Sampling
    uniform: float
    seen: Sequence[int] = ()
    generated: Sequence[int] = ()
    allowed: Tensor | None = None


def choose(logits: Tensor, rows: Sequence[NextToken]) -> tuple[Tensor, Tensor]:
    """The next token of each sequence, and its log-probability.

    Logits are changed in this order: repetition penalty, presence and frequency penalties, bias, allowed tokens,
    temperature, filters.

    Args:
        logits: (N, V), the model's.
        rows: N.

    Returns: tokens (N,) int64, and (N,) fp32 their log-probabilities under the model itself, before temperature,
        penalties, biases and filters; both on the logits' device.

    Raises:
        NotFiniteError: a logit is not finite.
    """
    device = logits.device
    temperatures = torch.tensor([row.sampling.temperature for row in rows], device=device)
    uniform = torch.tensor([row.uniform for row in rows], dtype=torch.float64).to(device, torch.float32)
    wanted = logits
    if any(row.allowed is not None or row.sampling.changes_logits for row in rows):
        wanted = _changed(wanted.float(), rows)
    if all(row.sampling.temperature == 0 for row in rows):
        tokens = wanted.argmax(-1)
        return tokens, _logprobs(logits, tokens)
    plain = wanted is logits and all(row.sampling.temperature == 1 and not row.sampling.filtered for row in rows)
    if plain:
        weights = torch.softmax(logits, -1, dtype=torch.float32)
        tokens = invert(weights, uniform)
        return tokens, weights.gather(1, tokens[:, None])[:, 0].log()
    greedy = wanted.argmax(-1)
    scaled = wanted.float() / temperatures.clamp_min(1e-6)[:, None]
    for place, row in enumerate(rows):
        if row.sampling.filtered:
            scaled[place : place + 1] = _filtered(scaled[place : place + 1], row.sampling)
    tokens = invert(torch.softmax(scaled, -1), uniform)
    tokens = torch.where(temperatures > 0, tokens, greedy)
    return tokens, _logprobs(logits, tokens)


def invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """Draw from unnormalised probabilities: the first token whose running sum exceeds `uniform` times the total.

    Args:
        weights: (N, V) fp32, 0 or more, some above 0 in each row.
        uniform: (N,) fp32 in [0, 1).

    Returns: tokens (N,) int64, never one of weight 0.

    Raises:
        NotFiniteError: a weight is not finite.
    """
    rows, vocabulary = weights.shape
    blocks = -(-vocabulary // _BLOCK)
    if blocks * _BLOCK != vocabulary:
        weights = torch.nn.functional.pad(weights, (0, blocks * _BLOCK - vocabulary))
    tiles = weights.view(rows, blocks, _BLOCK)
    running = tiles.sum(-1).cumsum(-1)
    totals = running[:, -1]
    if not torch.isfinite(totals).all():
        raise _not_finite()
    block, before = _first_above(running, uniform * totals)
    within = tiles[torch.arange(rows, device=weights.device), block].cumsum(-1)
    token, _ = _first_above(within, uniform * totals - before)
    return block * _BLOCK + token


def _first_above(running: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) the first index in rows of running sums (N, M) that exceeds `wanted`, and the sum before it.

    Rounding can make `wanted` equal to or greater than the last sum; then the first index with that sum is taken.
    """
    last = running[:, -1]
    below_last = torch.nextafter(last, torch.zeros_like(last))
    place = torch.searchsorted(running, torch.minimum(wanted, below_last)[:, None], right=True)
    before = torch.where(place > 0, running.gather(1, (place - 1).clamp_min(0)), 0.0)
    return place[:, 0], before[:, 0]


def _logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    found = torch.log_softmax(logits.float(), -1).gather(1, tokens[:, None])[:, 0]
    if not torch.isfinite(found).all():
        raise _not_finite()
    return found


def _not_finite() -> NotFiniteError:
    return NotFiniteError(
        "the model's logits are not finite", "Load it with dtype float32; if a run trained it, lower its learning rate."
    )


def likeliest(logits: Tensor, counts: Sequence[int]) -> list[tuple[tuple[int, float], ...]]:
    """The most likely tokens of each row of logits (N, V), with log-probabilities; `counts` says how many per row."""
    most = min(max(counts), logits.shape[1])
    values, tokens = torch.log_softmax(logits.float(), -1).topk(most)
    pairs = zip(tokens.tolist(), values.tolist(), strict=True)
    return [tuple(zip(*row, strict=True))[:count] for row, count in zip(pairs, counts, strict=True)]


def _changed(logits: Tensor, rows: Sequence[NextToken]) -> Tensor:
    """Logits (N, V) fp32 after penalties and biases, -inf where a token is not allowed."""
    logits = logits.clone()
    for place, row in enumerate(rows):
        if row.sampling.changes_logits:
            _penalise(logits[place], row)
        if row.allowed is not None:
            logits[place].masked_fill_(~row.allowed.to(logits.device), float("-inf"))
    return logits


def _penalise(logits: Tensor, row: NextToken) -> None:
    """Change the logits (V,) of one sequence in place."""
    sampling, device = row.sampling, logits.device
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(row.seen)), device=device)
        found = logits[seen]
        penalty = sampling.repetition_penalty
        logits[seen] = torch.where(found < 0, found * penalty, found / penalty)
    if row.generated and (sampling.presence_penalty or sampling.frequency_penalty):
        tokens, times = torch.unique(torch.tensor(row.generated, device=device), return_counts=True)
        logits[tokens] -= sampling.presence_penalty + sampling.frequency_penalty * times
    if sampling.logit_bias:
        tokens, biases = zip(*sampling.logit_bias, strict=True)
        logits.index_add_(0, torch.tensor(tokens, device=device), torch.tensor(biases, device=device))


def _filtered(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits (1, V) with -inf where a token may not be drawn, in transformers' own order."""
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    ids = torch.zeros(1, 0, dtype=torch.int64, device=logits.device)  # the filters do not read the ids
    if sampling.top_k:
        logits = TopKLogitsWarper(min(sampling.top_k, logits.shape[1]))(ids, logits)
    if sampling.top_p < 1:
        logits = TopPLogitsWarper(sampling.top_p)(ids, logits)
    if sampling.min_p:
        logits = MinPLogitsWarper(sampling.min_p)(ids, logits)
    return logits
