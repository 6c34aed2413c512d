"""Keys and values of sequences that are being written, a slot each, and attention of new tokens to them.

Both layouts here go to the layers in the place of a packed row's segments (models/attention.py): `Prefill` is a packed
row of whole prompts whose keys and values are kept, `Decode` a row of one new token a sequence. So every model that
takes packed rows also decodes here, with its own code, and needs no cache of transformers'.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefine.data.batch import Segment
from prefine.models.attention import CachedRow, Rule, packed_kernel


class SlotCache:
    """Preallocated keys and values of every attention layer that has been computed.

    Args:
        slots: sequences at once.
        capacity: longest sequence, tokens.
    """

    def __init__(self, slots: int, capacity: int) -> None:
        self.slots = slots
        self.capacity = capacity
        self._layers: weakref.WeakKeyDictionary[nn.Module, tuple[Tensor, Tensor]] = weakref.WeakKeyDictionary()

    def of(self, layer: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's keys and values, each (slots, K, capacity, D), made like `key` and `value` (K, T, D) at first."""
        found = self._layers.get(layer)
        if found is None:
            # Zeros: what lies behind a sequence's end is weighed with 0, which no leftover NaN may spoil.
            found = self._empty(key), self._empty(value)
            self._layers[layer] = found
        return found

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of a slot into another."""
        for tensors in self._layers.values():
            for each in tensors:
                each[target, :, :length] = each[source, :, :length]

    def grown(self, capacity: int) -> SlotCache:
        """A cache with room for longer sequences, and all that is in this one."""
        larger = SlotCache(self.slots, capacity)
        for layer, (keys, values) in self._layers.items():
            room = (0, 0, 0, capacity - self.capacity)
            larger._layers[layer] = F.pad(keys, room), F.pad(values, room)
        return larger

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(each.nbytes for tensors in self._layers.values() for each in tensors)

    def _empty(self, like: Tensor) -> Tensor:
        return like.new_zeros(self.slots, like.shape[0], self.capacity, like.shape[2])


@dataclass(frozen=True)
class Prefill(CachedRow):
    """A packed row of prompts whose keys and values go into slots.

    Attributes:
        cache: where to.
        segments: one a prompt, without answers.
        slots: the slot of each.
    """

    cache: SlotCache
    segments: tuple[Segment, ...]
    slots: tuple[int, ...]

    def attend(self, layer: nn.Module, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        """Packed attention, with what it attends to kept."""
        keys, values = self.cache.of(layer, k, v)
        for segment, slot in zip(self.segments, self.slots, strict=True):
            stop = segment.start + segment.prompt
            keys[slot, :, : segment.prompt] = k[:, segment.start : stop]
            values[slot, :, : segment.prompt] = v[:, segment.start : stop]
        return packed_kernel(q, k, v, self.segments, rule)


class Decode(CachedRow):
    """A row of one new token for each of the first `rows` slots.

    Args:
        cache: what was there before.
        lengths: tokens in each of those slots before the new one.
    """

    def __init__(self, cache: SlotCache, lengths: Sequence[int], device: torch.device) -> None:
        self._cache = cache
        self._rows = len(lengths)
        self._longest = max(lengths) + 1
        self._lengths = torch.tensor(lengths, device=device)
        self._slots = torch.arange(self._rows, device=device)
        self._biases: dict[tuple[int | None, torch.dtype], Tensor] = {}

    def attend(self, layer: nn.Module, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        """Attention of each token to its own slot: q (H, N, D), k and v (K, N, D) -> (H, N, D)."""
        keys, values = self._cache.of(layer, k, v)
        keys[self._slots, :, self._lengths] = k.transpose(0, 1)
        values[self._slots, :, self._lengths] = v.transpose(0, 1)
        heads, width = k.shape[0], v.shape[2]
        seen_keys = keys[: self._rows, :, : self._longest]
        seen_values = values[: self._rows, :, : self._longest]
        # Query heads of one key-value head are rows of one product: nothing is repeated.
        grouped = q.view(heads, -1, self._rows, q.shape[2]).permute(2, 0, 1, 3)
        scores = (grouped @ seen_keys.transpose(2, 3)).float().mul_(rule.scale)
        if rule.softcap is not None:
            scores = torch.tanh(scores / rule.softcap) * rule.softcap
        scores += self._bias(rule.window, scores.dtype)
        out = F.softmax(scores, -1).to(q.dtype) @ seen_values
        return out.permute(1, 2, 0, 3).reshape(-1, self._rows, width)

    def _bias(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """(N, 1, 1, longest): 0 where a token may look, -inf elsewhere."""
        found = self._biases.get((window, dtype))
        if found is None:
            distance = self._lengths[:, None] - torch.arange(self._longest, device=self._lengths.device)
            allowed = distance >= 0 if window is None else (distance >= 0) & (distance < window)
            found = torch.zeros(distance.shape, dtype=dtype, device=distance.device)
            found = found.masked_fill_(~allowed, float("-inf"))[:, None, None]
            self._biases[window, dtype] = found
        return found
