"""Requests to a writer, their results, and the base class of writers with its queue.

A writer generates text for rollouts, `prefine generate`, samples in reports and chat. `generation/engine.py` picks it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from prefine.data.tokens.vocabulary import require_embedded
from prefine.generation.sampling import Draws, NextToken, Sampling, choose, likeliest
from prefine.models.forward.fused import WeightCache, packed_weights, unchanging_weights
from prefine.models.forward.logprobs import logprobs_of_logits
from prefine.models.forward.packed import PackedModel, embedding_rows

# A stop text is searched in the last tokens: as many as it has bytes, and this many more.
_STOP_MARGIN_TOKENS = 8

# Packing weights for products of few rows takes about as long as it saves in this many steps.
_STEPS_WORTH_PACKING = 24

# The most likely tokens at a position with their log-probabilities, the most likely one first.
Top = tuple[tuple[int, float], ...]


class NewToken(NamedTuple):
    """A token, with log-probabilities under the model itself (before temperature, penalties and filters), nats.

    Attributes:
        top: the most likely tokens at its position, as many as requested.
        entropy: of the model's whole distribution at its position, nats; None if not requested.
    """

    token: int
    logprob: float
    top: Top = ()
    entropy: float | None = None


OnToken = Callable[[NewToken], None]


class TokenConstraint(Protocol):
    """Restricts the next tokens of one sequence, for output in a fixed form (generation/json_constraint.py)."""

    def mask(self) -> Tensor:
        """(V,) bool: the tokens that may come next, at least one; when the output is complete, only stop ids."""

    def accept(self, token: int) -> None:
        """Record the next token, one that the mask allowed."""


@dataclass(frozen=True)
class Request:
    """A sequence to generate.

    Attributes:
        prompt: token ids, at least one.
        sampling: sampling settings. max_new_tokens may be 0 only with prompt_logprobs.
        stop_ids: token ids that end it; the one that does is its last token.
        on_token: called with every token as soon as it is chosen.
        top_logprobs: number of most likely tokens to return at every position.
        prompt_logprobs: whether to return the prompt's log-probabilities, too.
        constraint: restricts the next tokens; None for no restriction. Generating changes its state.
        entropies: whether to return the entropy at every new token's position.

    Raises:
        ValueError: a value is out of its range.
    """

    prompt: Sequence[int]
    sampling: Sampling
    stop_ids: frozenset[int]
    on_token: OnToken | None = None
    top_logprobs: int = 0
    prompt_logprobs: bool = False
    constraint: TokenConstraint | None = None
    entropies: bool = False

    def __post_init__(self) -> None:
        if self.top_logprobs < 0:
            raise ValueError(f"top_logprobs is {self.top_logprobs}; it must be 0 or more")
        if self.sampling.max_new_tokens < 1 and not self.prompt_logprobs:
            raise ValueError(
                f"max_new_tokens is {self.sampling.max_new_tokens}; it must be at least 1 without prompt_logprobs"
            )


@dataclass(frozen=True)
class Generated:
    """A generated sequence.

    Attributes:
        tokens: new token ids, including the end of turn if there is one.
        logprobs: their log-probabilities under the model itself (before temperature, penalties and filters), nats.
        text: decoded without control tokens, up to a stop text.
        finish: stop (an end of turn or a stop text), length, or cancelled.
        ended: whether its last token is an end of turn.
        top_logprobs: for each token, the most likely ones at its position; empty if not requested.
        prompt_logprobs: for each token of the prompt, if requested; None for the first, which has no prediction.
        cached_tokens: number of the prompt's tokens that an earlier request had computed.
        entropies: of the distribution that each token is from (as of `logprobs`), nats; empty if not requested.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish: Literal["stop", "length", "cancelled"]
    ended: bool
    top_logprobs: tuple[Top, ...] = ()
    prompt_logprobs: tuple[NewToken | None, ...] = ()
    cached_tokens: int = 0
    entropies: tuple[float, ...] = ()


@dataclass(eq=False)
class ActiveSequence:
    """A sequence that is being generated.

    Attributes:
        ends: token ids that end it: its stop_ids, and its stop texts that are one control token.
        heard: log-probabilities of the prompt's tokens so far, if requested, from its second token on.
        cached: number of the prompt's tokens that an earlier request had computed.
    """

    number: int
    request: Request
    draws: Draws
    ends: frozenset[int]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[Top] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    heard: list[NewToken] = field(default_factory=list)
    cached: int = 0
    finish: Literal["stop", "length", "cancelled"] | None = None

    @property
    def length(self) -> int:
        """Number of tokens so far, prompt included."""
        return len(self.request.prompt) + len(self.tokens)

    def row(self) -> NextToken:
        """The inputs for choosing the next token."""
        sampling = self.request.sampling
        seen = [*self.request.prompt, *self.tokens] if sampling.repetition_penalty != 1 else ()
        constraint = self.request.constraint
        allowed = None if constraint is None else constraint.mask()
        return NextToken(sampling, self.draws[len(self.tokens)], seen, self.tokens, allowed)

    def add(self, new: NewToken, tokenizer: Any) -> None:
        """Append a token; the sequence is finished if the token ends it, completes a stop text or reaches the limit."""
        token = new.token
        self.tokens.append(token)
        self.logprobs.append(new.logprob)
        if self.request.top_logprobs:
            self.tops.append(new.top)
        if new.entropy is not None:
            self.entropies.append(new.entropy)
        if self.request.constraint is not None:
            self.request.constraint.accept(token)
        if token in self.ends or self._stopped_by_text(tokenizer):
            self.finish = "stop"
        elif len(self.tokens) == self.request.sampling.max_new_tokens:
            self.finish = "length"

    def hear_prompt(self, logits: Tensor, tokens: Tensor) -> None:
        """Record the next tokens of the prompt (N,) with the logits (N, V) that predict them."""
        logprobs = logprobs_of_logits(logits, tokens.to(logits.device)).tolist()
        count = self.request.top_logprobs
        tops = likeliest(logits, [count] * len(tokens)) if count and len(tokens) else [()] * len(tokens)
        self.heard += [NewToken(*each) for each in zip(tokens.tolist(), logprobs, tops, strict=True)]

    def _stopped_by_text(self, tokenizer: Any) -> bool:
        stops = self.request.sampling.stop
        if not stops:
            return False
        tail = self.tokens[-max(len(stop.encode()) for stop in stops) - _STOP_MARGIN_TOKENS :]
        text = tokenizer.decode(tail, skip_special_tokens=True)
        return any(stop in text for stop in stops)

    def result(self, tokenizer: Any) -> Generated:
        """The generated sequence."""
        last = self.tokens[-1] if self.tokens else None
        text = tokenizer.decode(self.tokens[:-1] if last in self.ends else self.tokens, skip_special_tokens=True)
        places = [place for stop in self.request.sampling.stop if (place := text.find(stop)) >= 0]
        text = text[: min(places)] if places else text
        return Generated(
            tokens=tuple(self.tokens),
            logprobs=tuple(self.logprobs),
            text=text,
            finish=self.finish or "cancelled",
            ended=last in self.request.stop_ids,
            top_logprobs=tuple(self.tops),
            prompt_logprobs=(None, *self.heard) if self.request.prompt_logprobs else (),
            cached_tokens=self.cached,
            entropies=tuple(self.entropies),
        )


class Writer(ABC):
    """Generates text for requests; only one thread at a time may use it.

    Args:
        model: the model; in eval mode during a call, and afterwards in its mode from before.
        tokenizer: the transformers tokenizer.
        slots: the most sequences at once.
        kept: a cache of packed weights to read and extend, if the weights never change while there are writers. By
            default each writer has its own, and drops it when idle.
    """

    def __init__(self, model: PackedModel, tokenizer: Any, slots: int, kept: WeightCache | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.slots = slots
        self._queue: deque[ActiveSequence] = deque()
        self._active: list[ActiveSequence] = []
        self._done: list[ActiveSequence] = []
        self._count = 0
        self._given = kept
        self._kept: WeightCache | None = None
        self._rows = embedding_rows(model.causal)

    def add(self, request: Request) -> int:
        """Queue a request; returns its number, counted from 0.

        Raises:
            ValueError: the prompt is empty, or logit_bias has a token that the model lacks.
            ModelError: the prompt has a token that the model's embedding lacks.
        """
        if not request.prompt:
            raise ValueError("a prompt must have at least one token")
        require_embedded(request.prompt, self._rows, self.tokenizer)
        sampling = request.sampling
        beyond = [token for token, _ in sampling.logit_bias if token >= self._rows]
        if beyond:
            raise ValueError(f"logit_bias has token {beyond[0]}; it must be below {self._rows}, the model's vocabulary")
        ends = request.stop_ids | _control_ids(sampling.stop, self.tokenizer)
        writing = ActiveSequence(self._count, request, Draws(sampling.seed, sampling.max_new_tokens), ends)
        self._queue.append(writing)
        self._count += 1
        return writing.number

    @property
    def busy(self) -> bool:
        """Whether a request is queued, active, or has ended and not been returned yet."""
        return bool(self._queue or self._active or self._done)

    def room(self, longest: int, sequences: int) -> int:
        """Tokens whose keys and values are held, at most, while so many sequences grow to so many tokens."""
        return longest * sequences

    def trim(self) -> None:  # noqa: B027 - most have nothing to give back
        """Give memory back that the sequences being written do not need; worth its time where much is too much."""

    def clear(self) -> None:
        """Forget all requests."""
        self._queue.clear()
        self._active, self._done = [], []
        self._kept = None

    def cancel(self, number: int) -> None:
        """Cancel a request; the next step returns it with the tokens so far."""
        for writing in (*self._queue, *self._active):
            if writing.number == number and writing.finish is None:
                writing.finish = "cancelled"
        self._done += [writing for writing in self._queue if writing.number == number]
        self._queue = deque(writing for writing in self._queue if writing.number != number)

    @torch.no_grad()
    def step(self) -> list[tuple[int, Generated]]:
        """Generate a little more; returns the requests that ended, with their numbers.

        The model's weights must stay as they are while the writer is busy. If a request's callback raises, so does
        this; all requests are then as if it had not raised.
        """
        if self._kept is None:
            self._kept = self._weight_cache() if self._given is None else self._given
        with unchanging_weights(self._kept):
            self._write_on()
        done, self._done = self._done, []
        if not self.busy:
            self._kept = None
        return [(writing.number, writing.result(self.tokenizer)) for writing in done]

    @abstractmethod
    def _write_on(self) -> None:
        """Generate a little more; move ended sequences from `_active` to `_done`."""

    def _weight_cache(self) -> WeightCache:
        """The cache of packed weights, if much is to be generated: packing takes as long as it saves in some steps."""
        tokens = sum(writing.request.sampling.max_new_tokens for writing in self._queue)
        much = tokens >= _STEPS_WORTH_PACKING * min(self.slots, max(1, len(self._queue)))
        return packed_weights(self.model) if much else WeightCache()

    def write(
        self, requests: Iterable[Request], progress: Callable[[int], None] = lambda done: None
    ) -> list[Generated]:
        """Generate all requests to their end; returns results in order. `progress` is called with the number done.

        Raises:
            ValueError: other requests are queued or active; a prompt is empty.
        """
        if self.busy:
            raise ValueError("the writer is busy with other requests: step it until they have ended")
        found: dict[int, Generated] = {}
        try:
            numbers = [self.add(request) for request in requests]
            while len(found) < len(numbers):
                ended = self.step()
                found |= dict(ended)
                if ended:
                    progress(len(found))
        except BaseException:
            self.clear()
            raise
        return [found[number] for number in numbers]

    def _start(self, writings: Sequence[ActiveSequence], logits: Tensor) -> None:
        """Choose the first tokens of sequences whose prompts are computed; those that request none end here."""
        for writing in writings:
            if not writing.request.sampling.max_new_tokens:
                writing.finish = writing.finish or "length"
        going = [place for place, writing in enumerate(writings) if writing.finish is None]
        if len(going) == len(writings):
            self._add_tokens(writings, logits)
        elif going:
            self._add_tokens([writings[place] for place in going], logits[going])

    def _add_tokens(self, writings: Sequence[ActiveSequence], logits: Tensor) -> None:
        """Choose and take a token for each; then tell whoever listens, all of them even if one raises."""
        tokens, logprobs = choose(logits, [writing.row() for writing in writings])
        tops, entropies = _tops(writings, logits), _entropies(writings, logits)
        taken = [NewToken(*each) for each in zip(tokens.tolist(), logprobs.tolist(), tops, entropies, strict=True)]
        for writing, new in zip(writings, taken, strict=True):
            writing.add(new, self.tokenizer)
        with ExitStack() as calls:
            for writing, new in zip(reversed(writings), reversed(taken), strict=True):
                if writing.request.on_token is not None:
                    calls.callback(writing.request.on_token, new)


def _tops(writings: Sequence[ActiveSequence], logits: Tensor) -> list[Top]:
    """The most likely tokens of each sequence that requests them."""
    tops: list[Top] = [()] * len(writings)
    asked = [place for place, writing in enumerate(writings) if writing.request.top_logprobs]
    if asked:
        counts = [writings[place].request.top_logprobs for place in asked]
        for place, top in zip(asked, likeliest(logits[asked], counts), strict=True):
            tops[place] = top
    return tops


def _entropies(writings: Sequence[ActiveSequence], logits: Tensor) -> list[float | None]:
    """The entropy of each sequence's distribution, nats; None where it is not requested."""
    entropies: list[float | None] = [None] * len(writings)
    asked = [place for place, writing in enumerate(writings) if writing.request.entropies]
    if asked:
        logprobs = torch.log_softmax((logits if len(asked) == len(writings) else logits[asked]).float(), -1)
        found = -(logprobs.exp() * logprobs.clamp_min(torch.finfo(logprobs.dtype).min)).sum(-1)
        for place, entropy in zip(asked, found.tolist(), strict=True):
            entropies[place] = entropy
    return entropies


def _control_ids(stops: Sequence[str], tokenizer: Any) -> frozenset[int]:
    """Ids of stop texts that are control tokens: decoded text never shows them."""
    return frozenset(tokenizer.convert_tokens_to_ids(stop) for stop in stops if stop in tokenizer.all_special_tokens)
