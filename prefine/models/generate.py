"""Writes many sequences at once, in slots: a sequence that ends leaves its slot to the next one at once.

Rollouts, `prefine generate`, samples for reports and chat all write here. New prompts are computed packed, each
distinct one once (several answers to one prompt share it); then all sequences go on a token a step, as one row of
tokens. A model that takes no packed rows writes in padded batches through transformers' generate
(models/padded_generate.py), with the same settings, the same random numbers and the same results.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from prefine.data.batch import Segment, common_beginning, token_offsets
from prefine.data.vocabulary import require_embedded
from prefine.models.attention import CachedRow
from prefine.models.forward import PackedModel, embedding_rows, evaluating
from prefine.models.fused import Kept, packed_weights, unchanging_weights
from prefine.models.logprobs import adjusted
from prefine.models.sampling import Draws, Row, Sampling, choose
from prefine.models.slots import Decode, Prefill, SlotCache

# Prompt tokens computed at once: memory follows it.
_PREFILL_TOKENS = 4096
# Rows of a step are rounded up to these: processors' libraries keep a kernel for each number of rows.
_ROWS = (1, 2, 4, 8, 12, 16, 24, 32)
_ROWS_APART = 16
# A slot's room grows by at least so many tokens, and by at least an eighth: all of it is computed with.
_ROOM_STEP = 32
# A stop text is looked for in the last tokens, so many more than it has bytes.
_STOP_MARGIN_TOKENS = 8

# Packing weights for products of few rows takes about as long as it saves in so many steps.
_STEPS_WORTH_PACKING = 24

OnToken = Callable[[int, float], None]


@dataclass(frozen=True)
class Request:
    """A sequence to be written.

    Attributes:
        prompt: token ids, at least one.
        sampling: how.
        stop_ids: token ids that end it; the one that did is its last token.
        on_token: called with every token and its log-probability, at once.
    """

    prompt: Sequence[int]
    sampling: Sampling
    stop_ids: frozenset[int]
    on_token: OnToken | None = None


@dataclass(frozen=True)
class Generated:
    """A sequence that was written.

    Attributes:
        tokens: new token ids, the end of turn included where there is one.
        logprobs: of each, under the model itself (before temperature, penalties and filters), nats.
        text: decoded without control tokens, up to a stop text.
        finish: stop (an end of turn or a stop text), length, or cancelled.
        ended: whether its last token is an end of turn.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish: Literal["stop", "length", "cancelled"]
    ended: bool


@dataclass
class Writing:
    """A sequence while it is written.

    Attributes:
        ends: token ids that end it: its stop_ids, and its stop texts that are one control token.
    """

    number: int
    request: Request
    draws: Draws
    ends: frozenset[int]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: Literal["stop", "length", "cancelled"] | None = None

    @property
    def length(self) -> int:
        """Tokens so far, prompt included."""
        return len(self.request.prompt) + len(self.tokens)

    def row(self) -> Row:
        """For the choice of the next token."""
        sampling = self.request.sampling
        seen = [*self.request.prompt, *self.tokens] if sampling.repetition_penalty != 1 else ()
        return Row(sampling, self.draws[len(self.tokens)], seen)

    def add(self, token: int, logprob: float, tokenizer: Any) -> None:
        """Take a token; finished if it ends the sequence, completes a stop text, or is the last there is room for."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if token in self.ends or self._stopped_by_text(tokenizer):
            self.finish = "stop"
        elif len(self.tokens) == self.request.sampling.max_new_tokens:
            self.finish = "length"

    def _stopped_by_text(self, tokenizer: Any) -> bool:
        stops = self.request.sampling.stop
        if not stops:
            return False
        tail = self.tokens[-max(len(stop.encode()) for stop in stops) - _STOP_MARGIN_TOKENS :]
        text = tokenizer.decode(tail, skip_special_tokens=True)
        return any(stop in text for stop in stops)

    def result(self, tokenizer: Any) -> Generated:
        """What was written."""
        last = self.tokens[-1] if self.tokens else None
        text = tokenizer.decode(self.tokens[:-1] if last in self.ends else self.tokens, skip_special_tokens=True)
        places = [place for stop in self.request.sampling.stop if (place := text.find(stop)) >= 0]
        text = text[: min(places)] if places else text
        return Generated(
            tuple(self.tokens), tuple(self.logprobs), text, self.finish or "cancelled", last in self.request.stop_ids
        )


class Writer(ABC):
    """Writes requests; one thread at a time.

    Args:
        model: in eval mode while it writes, and as it was after each call.
        tokenizer: transformers'.
        slots: sequences at once.
    """

    def __init__(self, model: PackedModel, tokenizer: Any, slots: int) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.slots = slots
        self._queue: deque[Writing] = deque()
        self._active: list[Writing] = []
        self._done: list[Writing] = []
        self._count = 0
        self._kept: Kept | None = None
        self._rows = embedding_rows(model.causal)

    def add(self, request: Request) -> int:
        """Queue a request; returns its number, counted from 0.

        Raises:
            ValueError: the prompt is empty.
            ModelError: the prompt has a token that the model's embedding does not.
        """
        if not request.prompt:
            raise ValueError("a prompt must have at least one token")
        require_embedded(request.prompt, self._rows, self.tokenizer)
        sampling = request.sampling
        ends = request.stop_ids | _control_ids(sampling.stop, self.tokenizer)
        writing = Writing(self._count, request, Draws(sampling.seed, sampling.max_new_tokens), ends)
        self._queue.append(writing)
        self._count += 1
        return writing.number

    @property
    def busy(self) -> bool:
        """Whether something is queued, being written, or has ended and not been returned yet."""
        return bool(self._queue or self._active or self._done)

    def clear(self) -> None:
        """Forget all requests."""
        self._queue.clear()
        self._active, self._done = [], []
        self._kept = None

    def cancel(self, number: int) -> None:
        """Give a request up; it comes out of the next step as far as it was written."""
        for writing in (*self._queue, *self._active):
            if writing.number == number and writing.finish is None:
                writing.finish = "cancelled"
        self._done += [writing for writing in self._queue if writing.number == number]
        self._queue = deque(writing for writing in self._queue if writing.number != number)

    @torch.no_grad()
    def step(self) -> list[tuple[int, Generated]]:
        """Write on a little; returns the requests that ended, with their numbers.

        The model's weights must stay as they are while the writer is busy. If a request's callback raises, so does
        this; all requests are then as if it had not raised.
        """
        if self._kept is None:
            self._kept = self._what_is_worth_keeping()
        with unchanging_weights(self._kept):
            self._write_on()
        done, self._done = self._done, []
        if not self.busy:
            self._kept = None
        return [(writing.number, writing.result(self.tokenizer)) for writing in done]

    @abstractmethod
    def _write_on(self) -> None:
        """Write a little; what has ended goes from `_active` to `_done`."""

    def _what_is_worth_keeping(self) -> Kept:
        """Packed weights where much is to be written: packing takes as long as it saves in some steps."""
        tokens = sum(writing.request.sampling.max_new_tokens for writing in self._queue)
        much = tokens >= _STEPS_WORTH_PACKING * min(self.slots, max(1, len(self._queue)))
        return packed_weights(self.model) if much else Kept()

    def write(
        self, requests: Iterable[Request], progress: Callable[[int], None] = lambda done: None
    ) -> list[Generated]:
        """Write requests to their end; results in their order. `progress` is told how many are done.

        Raises:
            ValueError: other requests are queued or being written; a prompt is empty.
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

    def _add_tokens(self, writings: Sequence[Writing], logits: Tensor) -> None:
        """Choose and take a token for each; then tell whoever listens, all of them even if one raises."""
        tokens, logprobs = choose(logits, [writing.row() for writing in writings])
        taken = list(zip(writings, tokens.tolist(), logprobs.tolist(), strict=True))
        for writing, token, logprob in taken:
            writing.add(token, logprob, self.tokenizer)
        with ExitStack() as calls:
            for writing, token, logprob in reversed(taken):
                if writing.request.on_token is not None:
                    calls.callback(writing.request.on_token, token, logprob)


class SlotWriter(Writer):
    """Writes in slots; for models that take packed rows."""

    def __init__(self, model: PackedModel, tokenizer: Any, slots: int) -> None:
        super().__init__(model, tokenizer, slots)
        self._cache: SlotCache | None = None

    def _write_on(self) -> None:
        """One token more for every sequence in a slot, after new ones have taken free slots."""
        with evaluating(self.model), self.model.autocast():
            self._release()
            self._admit()
            self._release()
            if self._active:
                self._decode()
            self._release()

    def _release(self) -> None:
        """Free the slots of finished sequences; the last sequences move into them, so that used slots come first."""
        cache = self._cache
        for slot in reversed(range(len(self._active))):
            if self._active[slot].finish is not None:
                self._done.append(self._active[slot])
                last = self._active.pop()
                if slot < len(self._active) and cache is not None:
                    self._active[slot] = last
                    cache.copy(len(self._active), slot)

    def _admit(self) -> None:
        """Fill free slots from the queue: each distinct prompt is computed once, in packed rows."""
        while self._queue and len(self._active) < self.slots:
            new: dict[tuple[int, ...], list[Writing]] = {}
            tokens, free = 0, self.slots - len(self._active)
            while self._queue and free:
                prompt = tuple(self._queue[0].request.prompt)
                tokens += 0 if prompt in new else len(prompt)
                if new and tokens > _PREFILL_TOKENS:
                    break
                new.setdefault(prompt, []).append(self._queue.popleft())
                free -= 1
            self._prefill(new)

    def _prefill(self, new: dict[tuple[int, ...], list[Writing]]) -> None:
        """Compute prompts as one tree: what all of them begin with (a system turn, say) once, then the rest of each."""
        writings = [writing for same in new.values() for writing in same]
        cache = self._room(max(map(len, new)) + 1, len(self._active) + len(writings))
        prompts = list(new)
        common = common_beginning(prompts)
        rests = [prompt[common:] for prompt in prompts]
        ids = [*prompts[0][:common], *(token for rest in rests for token in rest)]
        positions = [*range(common), *(place for prompt in prompts for place in range(common, len(prompt)))]
        copies = list(map(len, new.values()))
        firsts = [len(self._active) + before for before in token_offsets(copies)[:-1]]
        row = Prefill(cache, Segment(0, common, tuple(map(len, rests))), tuple(firsts))
        last = [common + end - 1 for end in token_offsets(map(len, rests))[1:]]
        logits = self._logits(ids, positions, row, last)
        for first, count in zip(firsts, copies, strict=True):
            for extra in range(1, count):
                cache.copy(first, first + extra)
        self._active += writings
        self._add_tokens(writings, logits.repeat_interleave(torch.tensor(copies, device=logits.device), 0))

    def _decode(self) -> None:
        """One token more for every active sequence, as one row; rows beyond them compute nothing that is used."""
        count = len(self._active)
        cache = self._room(max(writing.length for writing in self._active), count)
        spare = min(_rounded_up(count), cache.slots) - count
        lengths = [writing.length - 1 for writing in self._active] + [0] * spare
        ids = [writing.tokens[-1] for writing in self._active] + [0] * spare
        logits = self._logits(ids, lengths, Decode(cache, lengths, self.model.device), None)
        self._add_tokens(self._active, logits[:count])

    def _logits(self, ids: Sequence[int], positions: Sequence[int], row: CachedRow, last: list[int] | None) -> Tensor:
        """(N, V) logits behind the places `last` of a row; of all of its tokens where that is None."""
        device = self.model.device
        hidden = self.model.hidden(torch.tensor([ids], device=device), torch.tensor([positions], device=device), row)
        head = self.model.head()
        logits = head.module(hidden if last is None else hidden[last])
        return logits if head.scale == 1 and head.softcap is None else adjusted(logits, head)

    def _room(self, longest: int, sequences: int) -> SlotCache:
        """The cache, with room for so many sequences of so many tokens."""
        cache = self._cache
        slots = min(_rounded_up(sequences), self.slots)
        if cache is None or (not self._active and (cache.capacity > 2 * longest or cache.slots > 2 * slots)):
            cache = self._cache = SlotCache(slots, _whole_steps(longest))
        elif cache.capacity < longest:
            cache.grow(max(slots, cache.slots), _whole_steps(max(longest, cache.capacity * 9 // 8)))
        elif cache.slots < slots:
            cache.grow(slots, cache.capacity)
        return cache


def _control_ids(stops: Sequence[str], tokenizer: Any) -> frozenset[int]:
    """Stop texts that are control tokens, as ids: decoded text never shows them."""
    return frozenset(tokenizer.convert_tokens_to_ids(stop) for stop in stops if stop in tokenizer.all_special_tokens)


def _whole_steps(tokens: int) -> int:
    return -(-tokens // _ROOM_STEP) * _ROOM_STEP


def _rounded_up(rows: int) -> int:
    return next((size for size in _ROWS if size >= rows), -(-rows // _ROWS_APART) * _ROWS_APART)


def writer_for(model: PackedModel, tokenizer: Any, slots: int) -> Writer:
    """The way that a model writes: in slots, or padded where it takes no packed rows."""
    if model.packed and model.decodes and model.lengths is None:
        return SlotWriter(model, tokenizer, slots)
    from prefine.models.padded_generate import PaddedWriter

    return PaddedWriter(model, tokenizer, slots if model.lengths is None else 1)
