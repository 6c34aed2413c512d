"""Writes many sequences at once, in slots: a sequence that ends leaves its slot to the next one at once.

New prompts are computed packed, each distinct one once (several answers to one prompt share it); then all sequences
go on a token a step, as one row of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prefine.data.tokens.trees import Segment, common_beginning, token_offsets
from prefine.generation.slot_cache import Decode, Prefill, SlotCache
from prefine.generation.writer import Writer, Writing
from prefine.models.forward.attention import CachedRow
from prefine.models.forward.logprobs import adjusted
from prefine.models.forward.packed import PackedModel, evaluating

# Prompt tokens computed at once: memory follows it.
_PREFILL_TOKENS = 4096
# Rows of a step are rounded up to these: processors' libraries keep a kernel for each number of rows.
_ROWS = (1, 2, 4, 8, 12, 16, 24, 32)
_ROWS_APART = 16
# A slot's room grows by at least so many tokens, and by at least an eighth: all of it is computed with.
_ROOM_STEP = 32


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


def _whole_steps(tokens: int) -> int:
    return -(-tokens // _ROOM_STEP) * _ROOM_STEP


def _rounded_up(rows: int) -> int:
    return next((size for size in _ROWS if size >= rows), -(-rows // _ROWS_APART) * _ROWS_APART)
