"""From logits to tokens: each sequence by its own settings and its own random numbers.

A sequence's random numbers come from its seed alone, one a token, so what is drawn does not depend on what else is in
the batch. Tokens are drawn by inverting the distribution function (Devroye 1986, ch. 3.2): one uniform number a token
instead of one a vocabulary entry.
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

# Vocabulary entries whose probabilities are summed before the search: two short searches instead of a long sum.
_BLOCK = 256
# Beyond these, logits of a real model are no longer finite in float32.
_LEAST_PENALTY, _LARGEST_PENALTY = 0.001, 1000
# OpenAI's own limits of presence and frequency penalties, and of a token's bias.
_LARGEST_DEDUCTION, _LARGEST_BIAS = 2.0, 100.0


@dataclass(frozen=True)
class Sampling:
    """How a sequence is written.

    Attributes:
        max_new_tokens: at most so many tokens, the end of turn included; 0 computes the prompt only (see Request).
        temperature: logits are divided by it; 0 always takes the likeliest token.
        top_k: only so many likeliest tokens; 0: all.
        top_p: only the likeliest tokens that together have this probability (Holtzman et al. 2019, arXiv 1904.09751).
        min_p: only tokens of at least this share of the likeliest one's probability (arXiv 2407.01082).
        repetition_penalty: logits of tokens that are there already are divided by it, or multiplied where negative
            (Keskar et al. 2019, arXiv 1909.05858, sec. 4.1).
        stop: the text ends before the first of these.
        seed: of the random numbers.
        presence_penalty: subtracted from the logit of every token that was generated before; the prompt does not count.
        frequency_penalty: subtracted from that logit once for each time that the token was generated. Both penalties as
            OpenAI's API defines them.
        logit_bias: token ids and what is added to their logits, from -100 to 100.

    Raises:
        ValueError: a value out of its range.
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
        """Whether some tokens may not be drawn."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)

    @cached_property
    def changes_logits(self) -> bool:
        """Whether logits are changed before the temperature: by a penalty or a bias."""
        deducted = self.presence_penalty or self.frequency_penalty
        return self.repetition_penalty != 1 or bool(deducted or self.logit_bias)


def _within(value: float, limit: float) -> tuple[bool, str]:
    return abs(value) <= limit, f"from -{limit:g} to {limit:g}"


class Draws:
    """The uniform numbers of one sequence: its seed alone decides them, and each token has its own.

    NumPy gives them: they are the same on every device, and all of a seed's bits count.
    """

    def __init__(self, seed: int, count: int) -> None:
        self._numbers: list[float] = np.random.default_rng(seed % (1 << 64)).random(count).tolist()

    def __getitem__(self, place: int) -> float:
        return self._numbers[place]


@dataclass(frozen=True)
class NextToken:
    """A sequence at its next token.

    Attributes:
        sampling: its settings.
        uniform: its random number in [0, 1).
        seen: token ids that are there, prompt included; only asked for where repetition is penalised.
        generated: token ids after the prompt; only asked for where presence or frequency is penalised.
        allowed: (V,) bool, the tokens that may come next; None where all may.
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
        logits: (N, V), as the model gives them.
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
    """Draw from unnormalised probabilities: the first token at which their running sum exceeds uniform times the total.

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
    """(N,) the first place in rows of running sums (N, M) that exceeds what is wanted, and the sum before it.

    Rounding can put what is wanted at or above the last sum: the place where that is first reached is taken then.
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
        "the model's logits are not finite", "Load it with dtype float32; if a run made it, lower its learning rate."
    )


def likeliest(logits: Tensor, counts: Sequence[int]) -> list[tuple[tuple[int, float], ...]]:
    """The likeliest tokens of each row of logits (N, V), `counts` of them, with their log-probabilities."""
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

    ids = torch.zeros(1, 0, dtype=torch.int64, device=logits.device)  # none of them looks at these
    if sampling.top_k:
        logits = TopKLogitsWarper(min(sampling.top_k, logits.shape[1]))(ids, logits)
    if sampling.top_p < 1:
        logits = TopPLogitsWarper(sampling.top_p)(ids, logits)
    if sampling.min_p:
        logits = MinPLogitsWarper(sampling.min_p)(ids, logits)
    return logits
