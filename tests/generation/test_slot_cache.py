"""Tokens written one at a time against kept keys and values attend as in one packed row, whatever else is in the slots.

The reference is the packed attention of the whole sequence (models/attention.py), which has tests of its own.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prefine.data.tokens.trees import Segment
from prefine.generation import slot_cache
from prefine.generation.slot_cache import Decode, Extend, Prefill, SlotCache, SlotPart
from prefine.models.forward.attention import ScoreRule, packed_kernel

HEADS, KEY_HEADS, WIDTH = 6, 2, 8
RULES = {
    "plain": ScoreRule(0.3, None, None, 0.0),
    "window": ScoreRule(0.3, 3, None, 0.0),
    "softcap": ScoreRule(0.3, None, 0.7, 0.0),
    "window and softcap": ScoreRule(0.3, 2, 0.7, 0.0),
}
Inputs = tuple[Tensor, Tensor, Tensor]  # queries (H, T, D), keys and values (K, T, D) of a sequence


def sequence(tokens: int, seed: int) -> Inputs:
    """Random queries, keys and values."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(HEADS, tokens, WIDTH), (KEY_HEADS, tokens, WIDTH), (KEY_HEADS, tokens, WIDTH)]
    q, k, v = (2 * torch.randn(shape, generator=generator) for shape in shapes)
    return q, k, v


def whole(inputs: Inputs, rule: ScoreRule) -> Tensor:
    """(H, T, D) a sequence's attention in one go."""
    return packed_kernel(*inputs, (Segment(0, inputs[0].shape[1], ()),), rule)


def row(parts: Sequence[Inputs]) -> Inputs:
    """Parts of sequences as one row."""
    q, k, v = (torch.cat(each, 1) for each in zip(*parts, strict=True))
    return q, k, v


def part(inputs: Inputs, begin: int, end: int) -> Inputs:
    """Some tokens of a sequence."""
    q, k, v = (each[:, begin:end] for each in inputs)
    return q, k, v


def fill(
    cache: SlotCache,
    layer: nn.Module,
    prompts: Sequence[Inputs],
    slots: Sequence[int],
    rule: ScoreRule,
    common: int = 0,
) -> Tensor:
    """Put prompts that have their first `common` tokens in common into slots, as one row; (H, T, D) of that row."""
    lengths = [q.shape[1] for q, *_ in prompts]
    tree = Segment(0, common, tuple(n - common for n in lengths))
    rests = [part(inputs, common, n) for inputs, n in zip(prompts, lengths, strict=True)]
    return Prefill(cache, tree, tuple(slots)).attend(layer, *row([part(prompts[0], 0, common), *rests]), rule)


def decode(
    cache: SlotCache, layer: nn.Module, sequences: Sequence[Inputs], at: Sequence[int], rule: ScoreRule
) -> Tensor:
    """(H, N, D) of one more token of each sequence, the one at its place in `at`."""
    new = [part(inputs, place, place + 1) for inputs, place in zip(sequences, at, strict=True)]
    return Decode(cache, list(at), torch.device("cpu")).attend(layer, *row(new), rule)


def picked(expected: Sequence[Tensor], at: Sequence[int]) -> Tensor:
    """(H, N, D) one token's attention of each sequence."""
    return torch.stack([each[:, place] for each, place in zip(expected, at, strict=True)], 1)


@pytest.mark.parametrize("rule", RULES)
def test_token_by_token_is_the_whole_sequence(rule: str) -> None:
    """Each slot at its own length, with windows shorter and longer than that."""
    lengths = (4, 1, 9)
    sequences = [sequence(n + 6, n) for n in lengths]
    expected = [whole(inputs, RULES[rule]) for inputs in sequences]
    cache, layer = SlotCache(4, 16), nn.Identity()
    prompts = [part(inputs, 0, n) for inputs, n in zip(sequences, lengths, strict=True)]
    first = fill(cache, layer, prompts, (0, 1, 2), RULES[rule])
    right = torch.cat([each[:, :n] for each, n in zip(expected, lengths, strict=True)], 1)
    assert torch.allclose(first, right, atol=1e-5)
    for step in range(6):
        at = [n + step for n in lengths]
        out = decode(cache, layer, sequences, at, RULES[rule])
        assert torch.allclose(out, picked(expected, at), atol=1e-5)


@pytest.mark.parametrize("common", [1, 3, 6])
@pytest.mark.parametrize("rule", RULES)
def test_prompts_that_begin_alike_are_put_in_as_a_tree(rule: str, common: int) -> None:
    """Their common beginning stands once in the row, and each slot has all of its prompt."""
    first = sequence(9, 0)
    sequences = [row([part(first, 0, common), sequence(n, n)]) for n in (5, 2, 7)]
    cache, layer = SlotCache(3, 16), nn.Identity()
    prompts = [part(inputs, 0, inputs[0].shape[1] - 1) for inputs in sequences]
    out = fill(cache, layer, prompts, (1, 2, 0), RULES[rule], common)
    expected = [whole(inputs, RULES[rule]) for inputs in sequences]
    own = torch.cat([each[:, common:-1] for each in expected], 1)
    assert torch.allclose(out, torch.cat((expected[0][:, :common], own), 1), atol=1e-5)
    order = [2, 0, 1]
    at = [sequences[place][0].shape[1] - 1 for place in order]
    out = decode(cache, layer, [sequences[place] for place in order], at, RULES[rule])
    assert torch.allclose(out, picked([expected[place] for place in order], at), atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 69), st.booleans()), min_size=1, max_size=6),
    st.sampled_from(sorted(RULES)),
    st.integers(0, 3),
    st.sampled_from([70, 96]),
)
def test_what_was_in_the_slots_does_not_matter(
    cases: list[tuple[int, bool]], rule: str, spare: int, capacity: int
) -> None:
    """Longer and shorter sequences before these, prompts put in one by one or together, in any order of slots."""
    cache, layer = SlotCache(len(cases) + spare, capacity), nn.Identity()
    old = [sequence(capacity, 100 + slot) for slot in range(cache.slots)]
    fill(cache, layer, old, range(cache.slots), RULES[rule])
    sequences = [sequence(n + 1, slot) for slot, (n, _) in enumerate(cases)]
    prompts = [part(inputs, 0, n) for inputs, (n, _) in zip(sequences, cases, strict=True)]
    together = [slot for slot, (_, alone) in enumerate(cases) if not alone]
    for slots in ([together[::-1]] if together else []) + [[slot] for slot, (_, alone) in enumerate(cases) if alone]:
        fill(cache, layer, [prompts[slot] for slot in slots], slots, RULES[rule])
    at = [n for n, _ in cases]
    out = decode(cache, layer, sequences, at, RULES[rule])
    assert torch.allclose(out, picked([whole(inputs, RULES[rule]) for inputs in sequences], at), atol=1e-5)


def test_a_copied_slot_and_a_grown_cache_go_on_as_before() -> None:
    """In all layers, each with keys and values of its own."""
    rule, layers = RULES["plain"], [nn.Identity(), nn.Identity()]
    sequences = [sequence(12, seed) for seed in range(2)]
    cache = SlotCache(3, 8)
    for layer, inputs in zip(layers, sequences, strict=True):
        fill(cache, layer, [part(inputs, 0, 8)], (2,), rule)
    cache.copy(2, 0)
    before = cache.bytes
    cache.resize(5, 12)
    assert (cache.slots, cache.capacity, cache.bytes) == (5, 12, before * 12 // 8 * 5 // 3)
    for layer, inputs in zip(layers, sequences, strict=True):
        expected = whole(inputs, rule)
        for place in range(8, 12):
            out = decode(cache, layer, [inputs], [place], rule)
            assert torch.allclose(out[:, 0], expected[:, place], atol=1e-5)


def test_source_and_copy_go_their_own_ways() -> None:
    """A copy of a beginning goes on differently, and the source as if there were none."""
    rule, cache, layer = RULES["plain"], SlotCache(2, 16), nn.Identity()
    source, old, new = (sequence(9, seed) for seed in range(3))
    fill(cache, layer, [part(source, 0, 7), part(old, 0, 8)], (0, 1), rule)
    cache.copy(0, 1)
    copied = row([part(source, 0, 5), part(new, 0, 2)])
    for step in range(2):
        at = [7 + step, 5 + step]
        out = decode(cache, layer, [source, copied], at, rule)
        assert torch.allclose(out, picked([whole(source, rule), whole(copied, rule)], at), atol=1e-5)


def test_memory_is_as_told_and_goes_with_its_layer() -> None:
    """Nothing before the first layer comes; its own type; given back when the layer is gone."""
    cache, layer = SlotCache(3, 16), nn.Identity()
    assert cache.bytes == 0
    _, k, v = sequence(2, 0)
    keys, values = cache.of(layer, k.bfloat16(), v[..., :4].bfloat16())  # values may be narrower
    assert keys.dtype == values.dtype == torch.bfloat16
    assert cache.bytes == 2 * 3 * 16 * KEY_HEADS * (WIDTH + 4)
    del layer
    gc.collect()
    assert cache.bytes == 0


def test_bf16_scores_are_summed_in_fp32() -> None:
    """Products in bf16 stay near the exact ones, and of the values' type."""
    rule, layer, cache = RULES["plain"], nn.Identity(), SlotCache(1, 24)
    inputs = sequence(24, 3)
    q, k, v = (each.bfloat16() for each in inputs)
    fill(cache, layer, [part((q, k, v), 0, 23)], (0,), rule)
    out = decode(cache, layer, [(q, k, v)], [23], rule)
    assert out.dtype == torch.bfloat16
    assert (out[:, 0] - whole(inputs, rule)[:, 23]).abs().max() <= 0.1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=3),
    st.sampled_from(sorted(RULES)),
    st.booleans(),
)
def test_part_after_part_is_the_whole_sequence(cases: list[list[int]], rule: str, used: bool) -> None:
    """Parts of several sequences in a row, of any lengths, in blocks of rows; then token by token."""
    cache, layer = SlotCache(len(cases), 64), nn.Identity()
    if used:
        fill(cache, layer, [sequence(60, 90 + slot) for slot in range(len(cases))], range(len(cases)), RULES[rule])
    sequences = [sequence(sum(parts) + 1, slot) for slot, parts in enumerate(cases)]
    expected = [whole(inputs, RULES[rule]) for inputs in sequences]
    for slot in range(len(cases)):
        cache.load(slot, [])
    before = [0] * len(cases)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slot_cache, "_BLOCK_ROWS", 4)
        for turn in range(5):
            going = [slot for slot, parts in enumerate(cases) if turn < len(parts)]
            row_parts = [SlotPart(slot, before[slot], cases[slot][turn]) for slot in going]
            spans = [(before[slot], before[slot] + cases[slot][turn]) for slot in going]
            if going:
                new = row([part(sequences[slot], *span) for slot, span in zip(going, spans, strict=True)])
                out = Extend(cache, row_parts).attend(layer, *new, RULES[rule])
                right = [expected[slot][:, begin:end] for slot, (begin, end) in zip(going, spans, strict=True)]
                assert torch.allclose(out, torch.cat(right, 1), atol=1e-5)
            for slot, (_, end) in zip(going, spans, strict=True):
                before[slot] = end
    out = decode(cache, layer, sequences, before, RULES[rule])
    assert torch.allclose(out, picked(expected, before), atol=1e-5)


def test_what_was_read_can_be_loaded_into_another_cache() -> None:
    """Runs end to end, the first tokens of each; nothing of what was in the slot is left behind them."""
    rule, layers = RULES["plain"], [nn.Identity(), nn.Identity()]
    inputs = sequence(9, 1)
    first, second = SlotCache(1, 16), SlotCache(2, 32)
    for layer in layers:
        fill(first, layer, [part(inputs, 0, 8)], (0,), rule)
    runs = [(first.read(0, 0, 5), 5), (first.read(0, 5, 8), 2)]
    for layer in layers:
        fill(second, layer, [tuple(torch.full_like(each, torch.nan) for each in sequence(30, 2))], (1,), rule)  # type: ignore[list-item]
    second.load(1, runs)
    for layer in layers:
        out = Extend(second, [SlotPart(1, 7, 2)]).attend(layer, *part(inputs, 7, 9), rule)
        assert torch.allclose(out, whole(inputs, rule)[:, 7:], atol=1e-5)
        keys, values = second.of(layer, *inputs[1:])
        assert not keys[1, ..., 9:].any()
        assert not values[1, :, 9:].any()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=6),
    st.sampled_from(sorted(RULES)),
    st.sampled_from([0, 40, 200]),
)
def test_short_sequences_beside_long_ones(lengths: list[int], rule: str, worth: int) -> None:
    """However the slots are divided into products."""
    cache, layer = SlotCache(len(lengths) + 1, 96), nn.Identity()
    sequences = [sequence(n + 1, slot) for slot, n in enumerate(lengths)]
    for slot, (inputs, n) in enumerate(zip(sequences, lengths, strict=True)):
        fill(cache, layer, [part(inputs, 0, n)], [slot], RULES[rule])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"_WORTH_A_PLAN": worth, "_COST_OF_A_PRODUCT": 5, "_LENGTH_STEP": 8}.items():
            patch.setattr(slot_cache, name, value)
        out = decode(cache, layer, sequences, lengths, RULES[rule])
    expected = [whole(inputs, RULES[rule]) for inputs in sequences]
    assert torch.allclose(out, picked(expected, lengths), atol=1e-5)


def test_plans_by_hand() -> None:
    """Long sequences get products of their own where that saves enough."""
    assert slot_cache._plan([100] * 30 + [2000], 2048) == (128, [(30, 2001)])
    # 32 slots of 2048 tokens cost 65,536; two of 2,000 alone and 128 of each of the others, copied, 14,242.
    assert slot_cache._plan([2000, *[100] * 30, 1999], 2048) == (128, [(0, 2001), (31, 2000)])
    assert slot_cache._plan([1000] * 32, 2048) == (2048, [])  # copies of half of all slots save nothing
    assert slot_cache._plan([300] * 32, 2048) == (320, [])  # a long one has gone: 20,480
    assert slot_cache._plan([200, 400] * 16, 448) == (448, [])
    assert slot_cache._plan([5, 2000], 2048) == (2048, [])  # 4,096 are too few
