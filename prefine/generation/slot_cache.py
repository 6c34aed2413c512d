"""Keys and values of active sequences, one slot each, and attention of new tokens to them.

The layouts here are passed to the layers in place of a packed row's segments (models/forward/attention.py):
`Prefill` is a packed row of whole prompts whose keys and values are kept, `Extend` a row of several new tokens per
sequence, `Decode` a row of one new token per sequence. So every model that takes packed rows can decode here with its
own code, without a cache of transformers.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefine.data.tokens.trees import Segment
from prefine.generation.prefix_cache import LayerStates
from prefine.models.forward.attention import CachedRow, packed_kernel
from prefine.models.forward.blockwise import ScoreRule, causal_bias

# Rows of queries whose scores are in memory at once.
_BLOCK_ROWS = 512
# The cost of products with slots, in tokens of slots: of one more call, and (as a factor) of a product with a part of
# each slot, which must be copied first. A plan must save this much; rollouts, with sequences of similar length, do not.
_COST_OF_A_PRODUCT = 1024
_COST_OF_A_COPY = 2
_WORTH_A_PLAN = 8192
_LENGTH_STEP = 32


class SlotCache:
    """Preallocated keys and values of every attention layer that has been computed.

    Args:
        slots: number of sequences.
        capacity: length of the longest sequence, tokens.
    """

    def __init__(self, slots: int, capacity: int) -> None:
        self.slots = slots
        self.capacity = capacity
        self._layers: weakref.WeakKeyDictionary[nn.Module, tuple[Tensor, Tensor]] = weakref.WeakKeyDictionary()

    def of(self, layer: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's keys (slots, K, D, capacity) and values (slots, K, capacity, D); created on first use with the
        dtype and device of `key` and `value` (K, T, D).

        Keys are in the layout that products with queries read: that halves the time.
        """
        found = self._layers.get(layer)
        if found is None:
            found = (
                key.new_zeros(self.slots, key.shape[0], key.shape[2], self.capacity),
                value.new_zeros(self.slots, value.shape[0], self.capacity, value.shape[2]),
            )
            self._layers[layer] = found
        return found

    def copy(self, source: int, target: int) -> None:
        """Copy a slot to another."""
        for tensors in self._layers.values():
            for each in tensors:
                each[target] = each[source]

    def empty(self, slot: int) -> None:
        """Fill a slot with zeros. Values after a sequence's end get weight 0, but a NaN there would still spread."""
        for tensors in self._layers.values():
            for each in tensors:
                each[slot].zero_()

    def load(self, slot: int, runs: Sequence[tuple[LayerStates, int]]) -> None:
        """Put the first tokens of each run into a slot, end to end, followed by zeros."""
        self.empty(slot)
        place = 0
        for states, tokens in runs:
            for layer, (key, value) in states.items():
                keys, values = self.of(layer, key.transpose(1, 2), value)
                keys[slot, :, :, place : place + tokens] = key[..., :tokens]
                values[slot, :, place : place + tokens] = value[:, :tokens]
            place += tokens

    def read(self, slot: int, begin: int, end: int) -> LayerStates:
        """A copy of a slot's states from one position up to another."""
        return {
            layer: (keys[slot, :, :, begin:end].clone(), values[slot, :, begin:end].clone())
            for layer, (keys, values) in self._layers.items()
        }

    def resize(self, slots: int, capacity: int) -> None:
        """Make room for other numbers of sequences and tokens; what is in it and fits stays."""
        more, longer = slots - self.slots, capacity - self.capacity
        for layer in list(self._layers):
            keys, values = self._layers.pop(layer)  # one layer at a time, so that only one is in memory twice
            keys = F.pad(keys, (0, longer, 0, 0, 0, 0, 0, more))
            values = F.pad(values, (0, 0, 0, longer, 0, 0, 0, more))
            self._layers[layer] = keys, values
        self.slots, self.capacity = slots, capacity

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(each.nbytes for tensors in self._layers.values() for each in tensors)


@dataclass(frozen=True)
class Prefill(CachedRow):
    """A packed row of prompts with a common prefix: the prefix once, then the rest of each.

    Attributes:
        cache: stores their keys and values.
        tree: the row; its answers are the rests of the prompts.
        slots: the slot of each prompt.
    """

    cache: SlotCache
    tree: Segment
    slots: tuple[int, ...]

    def attend(self, layer: nn.Module, q: Tensor, k: Tensor, v: Tensor, rule: ScoreRule) -> Tensor:
        """Packed attention; keeps the keys and values."""
        keys, values = self.cache.of(layer, k, v)
        common, start = self.tree.prompt, self.tree.prompt
        for slot, own in zip(self.slots, self.tree.answers, strict=True):
            stop = start + own
            # Values after a sequence's end get weight 0, but a NaN of an earlier sequence would still spread.
            keys[slot].zero_()
            values[slot].zero_()
            keys[slot, :, :, :common] = k[:, :common].transpose(1, 2)
            values[slot, :, :common] = v[:, :common]
            keys[slot, :, :, common : common + own] = k[:, start:stop].transpose(1, 2)
            values[slot, :, common : common + own] = v[:, start:stop]
            start = stop
        return packed_kernel(q, k, v, (self.tree,), rule)


@dataclass(frozen=True)
class SlotPart:
    """New tokens of one sequence: its slot, the number of tokens already in it, and the number of new ones."""

    slot: int
    before: int
    tokens: int


class Extend(CachedRow):
    """A row of new tokens that continue the sequences in slots, several per slot.

    Args:
        cache: holds the earlier tokens.
        parts: in the order of the row; their slots hold zeros after the earlier tokens.
    """

    def __init__(self, cache: SlotCache, parts: Sequence[SlotPart]) -> None:
        self._cache = cache
        self._parts = parts
        self._biases: dict[tuple[int, int, int, torch.dtype], Tensor] = {}

    def attend(self, layer: nn.Module, q: Tensor, k: Tensor, v: Tensor, rule: ScoreRule) -> Tensor:
        """Attention of each part to its own slot: q (H, T, D), k and v (K, T, D) -> (H, T, D)."""
        keys, values = self._cache.of(layer, k, v)
        out = v.new_empty(q.shape[1], q.shape[0], v.shape[2]).transpose(
            0, 1
        )  # in the layer's memory layout: tokens first
        start = 0
        for part in self._parts:
            end, length = start + part.tokens, part.before + part.tokens
            keys[part.slot, :, :, part.before : length] = k[:, start:end].transpose(1, 2)
            values[part.slot, :, part.before : length] = v[:, start:end]
            for first in range(0, part.tokens, _BLOCK_ROWS):
                rows = q[:, start + first : min(start + first + _BLOCK_ROWS, end)]
                stop = part.before + first + rows.shape[1]
                begin = 0 if rule.window is None else max(0, part.before + first - rule.window + 1)
                seen = keys[part.slot, :, :, begin:stop], values[part.slot, :, begin:stop]
                out[:, start + first : start + first + rows.shape[1]] = self._block(rows, *seen, rule)
            start = end
        return out

    def _block(self, q: Tensor, keys: Tensor, values: Tensor, rule: ScoreRule) -> Tensor:
        """Attention of the last N of S tokens to all: q (H, N, D), keys (K, D, S), values (K, S, D) -> (H, N, D)."""
        heads, rows = len(keys), q.shape[1]
        # Query heads of one key-value head are rows of one product: nothing is repeated.
        scores = torch.bmm(q.reshape(heads, -1, q.shape[2]), keys).mul_(rule.scale).view(heads, -1, rows, keys.shape[2])
        if rule.softcap is not None:
            scores = torch.tanh(scores / rule.softcap) * rule.softcap
        weights = torch.softmax(scores.add_(self._bias(rows, keys.shape[2], rule.window, q)), -1)
        return torch.bmm(weights.flatten(1, 2), values).view(q.shape[0], rows, -1)

    def _bias(self, rows: int, keys: int, window: int | None, like: Tensor) -> Tensor:
        """(rows, keys): 0 where a token attends, -inf elsewhere; the tokens are the last `rows` of `keys`."""
        name = (rows, keys, window or 0, like.dtype)
        found = self._biases.get(name)
        if found is None:
            found = self._biases[name] = causal_bias(rows, keys, window, like.dtype, like.device)
        return found


class Decode(CachedRow):
    """A row of one new token for each of the first `rows` slots.

    Args:
        cache: holds the earlier tokens.
        lengths: number of tokens in each of those slots before the new one.
    """

    def __init__(self, cache: SlotCache, lengths: Sequence[int], device: torch.device) -> None:
        self._cache = cache
        self._rows = len(lengths)
        self._longest, self._alone = _plan(lengths, cache.capacity)
        self._lengths = torch.tensor(lengths, device=device)
        self._slots = torch.arange(self._rows, device=device)
        self._biases: dict[tuple[int | None, int, torch.dtype], Tensor] = {}

    def attend(self, layer: nn.Module, q: Tensor, k: Tensor, v: Tensor, rule: ScoreRule) -> Tensor:
        """Attention of each token to its own slot: q (H, N, D), k and v (K, N, D) -> (H, N, D)."""
        keys, values = self._cache.of(layer, k, v)
        keys[self._slots, :, :, self._lengths] = k.transpose(0, 1)
        values[self._slots, :, self._lengths] = v.transpose(0, 1)
        heads = k.shape[0]
        # Query heads of one key-value head are rows of one product: nothing is repeated.
        grouped = q.view(heads, -1, self._rows, q.shape[2]).permute(2, 0, 1, 3)
        bias = self._bias(rule.window, heads, q.dtype)

        def product(slots: slice, tokens: int) -> Tensor:
            """(N, H, D) for some slots, masked after the ends of their sequences."""
            few = slice(slots.start * heads, slots.stop * heads)
            queries, seen = grouped[slots].flatten(0, 1), keys[slots, :, :, :tokens].flatten(0, 1)
            if rule.softcap is None:
                scores = torch.baddbmm(bias[few, :, :tokens], queries, seen, alpha=rule.scale)
            else:
                scores = torch.tanh(torch.bmm(queries, seen) * (rule.scale / rule.softcap)) * rule.softcap
                scores = scores + bias[few, :, :tokens]
            out = torch.bmm(torch.softmax(scores, -1), values[slots, :, :tokens].flatten(0, 1))
            return out.view(slots.stop - slots.start, -1, v.shape[2])

        out = product(slice(0, self._rows), self._longest)
        for slot, tokens in self._alone:
            out[slot] = product(slice(slot, slot + 1), tokens)[0]
        return out.transpose(0, 1)

    def _bias(self, window: int | None, heads: int, dtype: torch.dtype) -> Tensor:
        """(N K, 1, capacity): 0 where a token attends, -inf elsewhere."""
        found = self._biases.get((window, heads, dtype))
        if found is None:
            distance = self._lengths[:, None] - torch.arange(self._cache.capacity, device=self._lengths.device)
            allowed = distance >= 0 if window is None else (distance >= 0) & (distance < window)
            found = torch.zeros(distance.shape, dtype=dtype, device=distance.device)
            found = found.masked_fill_(~allowed, float("-inf")).repeat_interleave(heads, 0)[:, None]
            self._biases[window, heads, dtype] = found
        return found


def _plan(lengths: Sequence[int], capacity: int) -> tuple[int, list[tuple[int, int]]]:
    """Which slots get a separate product, so that a few long sequences do not slow down the short ones.

    All slots are computed together up to some length; the result is not used for longer ones.

    Args:
        lengths: lengths of the sequences before the new token.

    Returns: the length that is computed for all slots, and the longer slots with their own lengths.
    """
    rows = len(lengths)
    whole = rows * capacity
    if whole < _WORTH_A_PLAN:
        return capacity, []
    order = sorted(range(rows), key=lengths.__getitem__, reverse=True)
    best, cost, alone = (capacity, 0), whole - _WORTH_A_PLAN, 0
    for count, slot in enumerate(order):
        # All but the `count` longest sequences have at most this many tokens, the new one included.
        longest = min(-(-(lengths[slot] + 1) // _LENGTH_STEP) * _LENGTH_STEP, capacity)
        found = alone + rows * longest * _COST_OF_A_COPY
        if found < cost:
            best, cost = (longest, count), found
        alone += lengths[slot] + 1 + _COST_OF_A_PRODUCT
    longest, count = best
    return longest, [(slot, lengths[slot] + 1) for slot in order[:count]]
