"""The model's forward on tokens in slots: whole prompts, several tokens of some sequences, one token of each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prefine.data.tokens.trees import Segment, common_beginning, token_offsets
from prefine.generation.slot_cache import Decode, Extend, Prefill, SlotCache, SlotPart
from prefine.models.forward.attention import CachedRow
from prefine.models.forward.logprobs import adjusted
from prefine.models.forward.packed import PackedModel

# The number of rows in a step is rounded up to these: processors' libraries keep a kernel per number of rows.
_ROWS = (1, 2, 4, 8, 12, 16, 24, 32)
_ROWS_APART = 16
# A slot grows by at least this many tokens, and by at least an eighth; all of its room takes part in products.
_ROOM_STEP = 32


class SlotForward:
    """Computes rows of tokens, and keeps their keys and values in slots.

    Args:
        model: a model that takes packed rows.
        slots: number of sequences.

    Attributes:
        cache: keys and values; `reserve` creates it.
    """

    def __init__(self, model: PackedModel, slots: int) -> None:
        self._model = model
        self._slots = slots
        self.cache = SlotCache(0, 0)

    def release(self) -> None:
        """Free the memory of all slots."""
        self.cache = SlotCache(0, 0)

    def reserve(self, longest: int, sequences: int) -> None:
        """Make room for `sequences` sequences of up to `longest` tokens; the contents of the slots stay."""
        cache, slots = self.cache, min(_rounded_up(sequences), self._slots)
        if not cache.slots:
            self.cache = SlotCache(slots, _whole_steps(longest))
        elif cache.capacity < longest:
            cache.resize(max(slots, cache.slots), _whole_steps(max(longest, cache.capacity * 9 // 8)))
        elif cache.slots < slots:
            cache.resize(slots, cache.capacity)

    def room(self, longest: int, sequences: int) -> int:
        """Tokens that all slots together hold, at most, while so many sequences grow to so many tokens."""
        slots = max(self.cache.slots, min(_rounded_up(sequences), self._slots))
        return slots * max(self.cache.capacity, _whole_steps(longest * 9 // 8))

    def trim(self, longest: int, sequences: int) -> None:
        """Give room back where the sequences in the first slots need half of it or less."""
        cache, slots, capacity = self.cache, min(_rounded_up(sequences), self._slots), _whole_steps(longest)
        if 2 * slots * capacity <= cache.slots * cache.capacity:
            cache.resize(min(slots, cache.slots), min(capacity, cache.capacity))

    def prompts(self, prompts: Sequence[Sequence[int]], slots: Sequence[int]) -> tuple[Tensor, list[list[int]]]:
        """Compute prompts as one tree: their common prefix (a system turn, for example) once, then the rest of each.

        Returns hidden states (T, H), and the indices of each prompt's tokens among them.
        """
        common = common_beginning(prompts)
        rests = [prompt[common:] for prompt in prompts]
        ids = [*prompts[0][:common], *(token for rest in rests for token in rest)]
        positions = [*range(common), *(place for prompt in prompts for place in range(common, len(prompt)))]
        lengths = tuple(map(len, rests))
        row = Prefill(self.cache, Segment(0, common, lengths), tuple(slots))
        starts = [common + start for start in token_offsets(lengths)]
        places = [
            [*range(common), *range(start, start + length)] for start, length in zip(starts, lengths, strict=False)
        ]
        return self._hidden(ids, positions, row), places

    def extend(self, tokens: Sequence[Sequence[int]], parts: Sequence[SlotPart]) -> Tensor:
        """Compute the tokens of each part; returns hidden states (T, H), part after part."""
        ids = [token for each in tokens for token in each]
        positions = [place for part in parts for place in range(part.before, part.before + part.tokens)]
        return self._hidden(ids, positions, Extend(self.cache, parts))

    def decode(self, ids: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """Compute one more token in each of the first N slots, which hold `lengths` tokens; returns logits (N, V).

        The results of rows beyond N are not used.
        """
        spare = min(_rounded_up(len(ids)), self.cache.slots) - len(ids)
        positions = [*lengths, *[0] * spare]
        row = Decode(self.cache, positions, self._model.device)
        return self.logits(self._hidden([*ids, *[0] * spare], positions, row))[: len(ids)]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (N, V) of hidden states (N, H)."""
        head = self._model.logits_head()
        logits: Tensor = head.module(hidden)
        return logits if head.scale == 1 and head.softcap is None else adjusted(logits, head)

    def _hidden(self, ids: Sequence[int], positions: Sequence[int], row: CachedRow) -> Tensor:
        device = self._model.device
        return self._model.hidden(torch.tensor([ids], device=device), torch.tensor([positions], device=device), row)


def _whole_steps(tokens: int) -> int:
    return -(-tokens // _ROOM_STEP) * _ROOM_STEP


def _rounded_up(rows: int) -> int:
    return next((size for size in _ROWS if size >= rows), -(-rows // _ROWS_APART) * _ROWS_APART)
