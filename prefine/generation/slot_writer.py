"""Generates many sequences at once, in slots: the next sequence takes a slot as soon as its sequence ends.

New prompts are computed packed, each distinct one once (several answers to one prompt share it). Then all sequences get
one token per step, as one row of tokens. A prompt that is longer than the limit of a step continues in the next steps,
so that other sequences do not wait for it. A prompt's prefix that earlier requests have computed is not recomputed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from prefine.data.tokens.trees import token_offsets
from prefine.generation.prefix_cache import PrefixCache
from prefine.generation.prompt_rows import (
    Filling,
    NextPart,
    Oversize,
    Prompt,
    can_be_copied,
    next_parts,
    others_wait,
    take_prompts,
)
from prefine.generation.slot_cache import SlotPart
from prefine.generation.slot_forward import SlotForward
from prefine.generation.writer import ActiveSequence, Writer
from prefine.models.forward.fused import WeightCache
from prefine.models.forward.packed import PackedModel, evaluating

# Prompt tokens in one row; memory grows with it.
ROW_TOKENS = 4096
# Rows of logits in memory at once for log-probabilities of a prompt.
_SCORED_ROWS = 256


class SlotWriter(Writer):
    """Generates in slots; for models that take packed rows.

    Args:
        model, tokenizer, slots, kept: see Writer.
        prefix_tokens: the most tokens whose keys and values are kept between requests; the least recently used are
            removed first, and 0 keeps none. They belong to the weights and the active adapter: each adapter needs its
            own writer.
        prefill_tokens: the most prompt tokens that are computed in one step, so that active sequences do not wait. A
            prompt is computed in parts only if it is longer, or while another one is. By default each step fills all
            free slots, and prompts are computed as a whole.

    Raises:
        ValueError: a value is out of its range.
    """

    def __init__(
        self,
        model: PackedModel,
        tokenizer: Any,
        slots: int,
        *,
        prefix_tokens: int = 0,
        prefill_tokens: int | None = None,
        kept: WeightCache | None = None,
    ) -> None:
        super().__init__(model, tokenizer, slots, kept)
        for name, value, least in (("prefix_tokens", prefix_tokens, 0), ("prefill_tokens", prefill_tokens, 1)):
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; it must be {least} or more")
        self._forward = SlotForward(model, slots)
        self._filling: list[Filling] = []
        self._prefixes = PrefixCache(prefix_tokens)
        self._prefill_tokens = prefill_tokens

    def clear(self) -> None:
        """Drop all requests, and all keys and values."""
        super().clear()
        self._filling = []
        self._forward.release()
        self.forget_prefixes()

    def forget_prefixes(self) -> None:
        """Drop the keys and values that are kept between requests."""
        self._prefixes.clear()

    @property
    def bytes(self) -> int:
        """Memory of keys and values."""
        return self._forward.cache.bytes + self._prefixes.bytes

    def room(self, longest: int, sequences: int) -> int:
        """See Writer."""
        return self._forward.room(longest, sequences)

    def trim(self) -> None:
        """See Writer."""
        if self._active:
            self._forward.trim(max(writing.length for writing in self._active), len(self._active))

    def _write_on(self) -> None:
        """Fill free slots with new sequences, then generate one more token for every sequence in a slot."""
        with evaluating(self.model), self.model.autocast():
            self._release()
            self._compute_prompts()
            self._release()
            if len(self._active) > len(self._filling):
                self._decode()
            self._release()
        if not self._active:
            self._forward.release()  # the next requests may need much less

    def _release(self) -> None:
        """Free the slots of finished sequences; the last sequences move into them, so that used slots come first."""
        for slot in reversed(range(len(self._active))):
            writing = self._active[slot]
            if writing.finish is None:
                continue
            computed = writing.length - 1  # the last token was chosen, but not computed
            for filling in [each for each in self._filling if each.writing is writing]:
                computed = filling.computed
                self._filling.remove(filling)
            self._keep(slot, computed)
            self._done.append(writing)
            last = self._active.pop()
            if slot < len(self._active):
                self._active[slot] = last
                self._forward.cache.copy(len(self._active), slot)

    def _keep(self, slot: int, computed: int) -> None:
        """Cache the first tokens of the sequence in a slot for later ones."""
        if self._prefixes.room:
            writing, cache = self._active[slot], self._forward.cache
            tokens = [*writing.request.prompt, *writing.tokens][:computed]
            self._prefixes.add(tokens, lambda begin, end: cache.read(slot, begin, end))

    def _compute_prompts(self) -> None:
        """Continue prompts that are computed in parts; then fill free slots from the queue.

        If new prompts wait, half of a step's prompt tokens are for them, so that they do not wait for a long one.
        """
        limit = self._prefill_tokens
        room = math.inf if limit is None else limit
        if limit is not None and self._filling:
            shared = len(self._active) < self.slots and others_wait(self._queue, self._filling)
            parts = next_parts(self._filling, max(1, limit // 2) if shared else limit)
            room -= sum(length for _, length in parts)
            self._extend(parts)
        oversize: Oversize = "whole" if limit is None else "split"
        while room > 0 and (free := self.slots - len(self._active)):
            most = int(min(room, ROW_TOKENS))
            taken = take_prompts(self._queue, self._filling, self._prefixes, free, most, oversize)
            if not taken.tokens:
                break
            with ExitStack() as calls:  # the second is called, too, if who listens to the first raises
                if taken.parts:
                    calls.callback(self._begin, taken.parts)
                if taken.whole:
                    calls.callback(self._prefill, taken.whole)
            room -= taken.tokens
            oversize = "whole" if limit is None else "wait"

    def _prefill(self, whole: dict[Prompt, list[ActiveSequence]]) -> None:
        """Compute new prompts, each once, and copy them for all of their sequences."""
        writings = [writing for same in whole.values() for writing in same]
        copies = list(map(len, whole.values()))
        slots = [len(self._active) + before for before in token_offsets(copies)[:-1]]
        self._forward.reserve(max(map(len, whole)) + 1, len(self._active) + len(writings))
        hidden, places = self._forward.prompts(list(whole), slots)
        self._active += writings
        for slot, own, same in zip(slots, places, whole.values(), strict=True):
            for extra, writing in enumerate(same):
                _score_prompt(self._forward, writing, hidden, own)
                if extra:
                    self._forward.cache.copy(slot, slot + extra)
            self._keep(slot, len(own))
        logits = self._forward.logits(hidden[[own[-1] for own in places]])
        self._start(writings, logits.repeat_interleave(torch.tensor(copies, device=logits.device), 0))

    def _begin(self, parts: Sequence[NextPart]) -> None:
        """Give prompts slots with their cached prefixes, and compute their first parts."""
        longest = max(len(filling.prompt) for filling, _ in parts)
        self._forward.reserve(longest + 1, len(self._active) + len(parts))
        for filling, _ in parts:
            self._forward.cache.load(len(self._active), filling.runs)
            filling.writing.cached, filling.runs = filling.computed, []
            self._active.append(filling.writing)
            self._filling.append(filling)
        self._extend(parts)

    def _extend(self, parts: Sequence[NextPart]) -> None:
        """Compute more tokens of prompts. Complete ones start to generate, with all waiting copies."""
        slots = [self._active.index(filling.writing) for filling, _ in parts]
        row = [SlotPart(slot, f.computed, length) for slot, (f, length) in zip(slots, parts, strict=True)]
        tokens = [filling.prompt[filling.computed :][:length] for filling, length in parts]
        hidden = self._forward.extend(tokens, row)
        ready: list[int] = []
        writings: list[ActiveSequence] = []
        for slot, start, (filling, length) in zip(slots, token_offsets(map(len, tokens)), parts, strict=False):
            own = range(start, start + length)
            _score_prompt(self._forward, filling.writing, hidden, own, filling.computed)
            filling.computed += length
            if not filling.rest:
                self._filling.remove(filling)
                self._keep(slot, filling.computed)
                same = [filling.writing, *self._copies(filling, slot)]
                ready += [start + length - 1] * len(same)
                writings += same
        if ready:
            self._start(writings, self._forward.logits(hidden[ready]))

    def _copies(self, filling: Filling, slot: int) -> list[ActiveSequence]:
        """Queued sequences with this prompt, copied to free slots."""
        free = self.slots - len(self._active)
        waiting = (each for each in self._queue if can_be_copied(each) and tuple(each.request.prompt) == filling.prompt)
        same = list(islice(waiting, free))
        self._forward.reserve(len(filling.prompt) + 1, len(self._active) + len(same))
        for writing in same:
            self._queue.remove(writing)
            self._forward.cache.copy(slot, len(self._active))
            writing.cached = filling.writing.cached
            self._active.append(writing)
        return same

    def _decode(self) -> None:
        """Generate one more token for every active sequence.

        Prompts that are computed in parts have slots between the others. They get a token as well, which their next
        part overwrites.
        """
        computed = {filling.writing.number: filling.computed for filling in self._filling}
        lengths = [computed.get(writing.number, writing.length - 1) for writing in self._active]
        ids = [writing.tokens[-1] if writing.tokens else 0 for writing in self._active]
        self._forward.reserve(max(writing.length for writing in self._active), len(self._active))
        logits = self._forward.decode(ids, lengths)
        if computed:
            going = [place for place, writing in enumerate(self._active) if writing.number not in computed]
            self._add_tokens([self._active[place] for place in going], logits[going])
        else:
            self._add_tokens(self._active, logits)


def _score_prompt(
    forward: SlotForward, writing: ActiveSequence, hidden: Tensor, places: Sequence[int], first: int = 0
) -> None:
    """Record log-probabilities of prompt tokens if the request asks for them.

    Args:
        hidden: (T, H), hidden states of a row.
        places: indices in the row of the prompt's tokens, from its token number `first` on.
    """
    if writing.request.prompt_logprobs:
        tokens = writing.request.prompt[first + 1 : first + 1 + len(places)]
        for begin in range(0, len(tokens), _SCORED_ROWS):
            some = tokens[begin : begin + _SCORED_ROWS]
            logits = forward.logits(hidden[list(places[begin : begin + len(some)])])
            writing.hear_prompt(logits, torch.tensor(some))
