"""A prefix cache gives back exactly what it was given for the same tokens, within its room, the latest used first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prefine.generation.prefix_cache import LayerStates, PrefixCache

LAYERS = (nn.Identity(), nn.Identity())


def states(tokens: Sequence[int]) -> Tensor:
    """(T,): a number for each token that depends on all tokens up to it."""
    return torch.tensor([float(hash(tuple(tokens[: place + 1])) % 1000003) for place in range(len(tokens))])


def reader(tokens: Sequence[int], asked: list[tuple[int, int]] | None = None) -> Callable[[int, int], LayerStates]:
    """What a slot with these tokens holds: keys (1, 1, T) and values (1, T, 1), other ones in each layer."""
    whole = states(tokens)

    def read(begin: int, end: int) -> LayerStates:
        if asked is not None:
            asked.append((begin, end))
        part = whole[begin:end]
        return {layer: (part[None, None] + n, part[None, :, None] - n) for n, layer in enumerate(LAYERS)}

    return read


def found(cache: PrefixCache, tokens: Sequence[int]) -> int:
    """How many tokens are kept; their states are checked."""
    runs = cache.find(tokens)
    length = sum(count for _, count in runs)
    for n, layer in enumerate(LAYERS if length else ()):
        keys = torch.cat([run[layer][0][0, 0, :count] for run, count in runs])
        values = torch.cat([run[layer][1][0, :count, 0] for run, count in runs])
        assert torch.equal(keys, states(tokens)[:length] + n)
        assert torch.equal(values, states(tokens)[:length] - n)
    return length


def add(cache: PrefixCache, tokens: Sequence[int]) -> list[tuple[int, int]]:
    """Keep tokens; returns which places were read."""
    asked: list[tuple[int, int]] = []
    cache.add(tokens, reader(tokens, asked))
    return asked


def test_a_common_beginning_is_kept_once() -> None:
    """And only what is new is read."""
    cache = PrefixCache(100)
    assert found(cache, [1, 2]) == 0
    assert add(cache, [1, 2, 3, 4]) == [(0, 4)]
    assert add(cache, [1, 2, 3, 4]) == add(cache, [1, 2]) == []
    assert add(cache, [1, 2, 7]) == [(2, 3)]
    assert add(cache, [1, 2, 3, 4, 5, 6]) == [(4, 6)]
    assert cache.tokens == 7
    assert cache.bytes == 7 * 2 * 2 * 4
    assert [found(cache, each) for each in ([1, 2, 3, 4, 5, 9], [1, 2, 7, 7], [1, 2, 3], [1, 9], [2], [])] == [
        5, 3, 3, 1, 0, 0
    ]  # fmt: skip
    cache.clear()
    assert (cache.tokens, cache.bytes, found(cache, [1, 2])) == (0, 0, 0)


def test_the_least_recently_used_goes_first() -> None:
    """What was looked for or added counts as used; a common beginning stays as long as what goes on from it."""
    cache = PrefixCache(6)
    add(cache, [1, 1, 2])
    add(cache, [1, 1, 3])
    add(cache, [5, 5])
    assert cache.tokens == 6
    assert found(cache, [1, 1, 2]) == 3
    add(cache, [6])
    assert [found(cache, each) for each in ([1, 1, 2], [1, 1, 3], [5, 5], [6])] == [3, 2, 2, 1]
    add(cache, [7, 7, 7, 7])
    assert cache.tokens <= 6
    assert found(cache, [7, 7, 7, 7]) == 4
    assert found(cache, [1, 1, 2]) == 0


def test_more_than_there_is_room_for() -> None:
    """The beginning is kept; no room keeps nothing and reads nothing."""
    cache = PrefixCache(3)
    assert add(cache, [1, 2, 3, 4, 5]) == [(0, 3)]
    assert found(cache, [1, 2, 3, 4, 5]) == 3
    assert add(PrefixCache(0), [1, 2]) == []


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 2), max_size=12)), max_size=25),
    st.sampled_from([0, 1, 5, 20, 1000]),
)
def test_any_order_of_looks_and_additions(actions: list[tuple[bool, list[int]]], room: int) -> None:
    """States are right, the room is kept, and with enough of it everything is found."""
    cache = PrefixCache(room)
    added: list[list[int]] = []
    for adds, tokens in actions:
        if adds:
            add(cache, tokens)
            added.append(tokens)
            assert found(cache, tokens) == min(len(tokens), room)
        longest = max((sum(1 for _ in _same(tokens, each)) for each in added), default=0)
        length = found(cache, tokens)
        assert length <= longest
        assert length == longest or room < 1000
        assert cache.tokens <= room
        assert cache.bytes == cache.tokens * 16


def _same(first: list[int], second: list[int]) -> list[int]:
    count = next((n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    return first[: min(len(first), len(second)) if count is None else count]


@pytest.mark.parametrize("at", [1, 5])
def test_a_split_run_gives_its_memory_back(at: int) -> None:
    """Neither part holds the memory of the other."""
    cache = PrefixCache(8)
    add(cache, list(range(8)))
    add(cache, [*range(at), 99])
    for run, _ in cache.find(list(range(8))):
        for pair in run.values():
            assert all(each.untyped_storage().nbytes() == each.nbytes for each in pair)
