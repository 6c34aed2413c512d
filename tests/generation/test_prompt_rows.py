"""Prompts computed in parts, or after what earlier requests left, give what they give whole; nobody waits for long."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from prefine.generation.engine import writer_for
from prefine.generation.prefix_cache import PrefixCache
from prefine.generation.prompt_rows import Filling, next_parts, take_prompts
from prefine.generation.sampling import Draws, Sampling
from prefine.generation.slot_writer import SlotWriter
from prefine.generation.writer import ActiveSequence, Generated, NewToken, Request
from tests.generation.test_slot_writer import (
    Numbers,
    assert_same,
    by_transformers,
    counted,
    heard_enough,
    kept,
    request,
    settled,
    steps,
    write,
)
from tests.models import tiny

LONG = tiny.tree(60).prompt
# What a conversation is made of: prompts that go on from others, that differ early and late, and short ones.
TALKS = [LONG, LONG[:40], [*LONG[:40], 5, 6, 7], [*LONG[:17], 9, *LONG[18:50]], LONG[:2], [*LONG, *LONG[:30]], [8] * 30]
REQUESTS = st.builds(
    request,
    st.sampled_from(TALKS),
    st.integers(1, 7),
    temperature=st.sampled_from([0.0, 1.0, 1.6]),
    top_p=st.sampled_from([1.0, 0.7]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 3),
)


def writer(
    architecture: str = "llama", slots: int = 3, *, prefix_tokens: int = 0, prefill_tokens: int | None = None
) -> SlotWriter:
    made = writer_for(kept(architecture), Numbers(), slots, prefix_tokens=prefix_tokens, prefill_tokens=prefill_tokens)
    assert isinstance(made, SlotWriter)
    return made


@functools.cache
def _alone(architecture: str, prompt: tuple[int, ...], sampling: Sampling) -> Generated:
    return write(kept(architecture), [Request(prompt, sampling, frozenset())], 1)[0]


def alone(architecture: str, wanted: Request) -> Generated:
    """The sequence by itself: its prompt whole, nothing kept."""
    return _alone(architecture, tuple(wanted.prompt), wanted.sampling)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2"])
@settings(max_examples=9, deadline=None, derandomize=True, phases=[Phase.generate])  # shrinking takes minutes
@given(
    cases=st.lists(st.tuples(REQUESTS, st.sampled_from([0, 0, 1, 3])), min_size=1, max_size=9),
    slots=st.integers(1, 5),
    prefill_tokens=st.sampled_from([1, 2, 5, 16, 50, 4096, None]),
    prefix_tokens=st.sampled_from([0, 45, 1000]),
)
def test_parts_and_kept_beginnings_change_nothing(
    architecture: str, cases: list[tuple[Request, int]], slots: int, prefill_tokens: int | None, prefix_tokens: int
) -> None:
    """Greedy and sampled tokens are those of the sequence alone, whatever runs beside it and came before."""
    made = writer(architecture, slots, prefix_tokens=prefix_tokens, prefill_tokens=prefill_tokens)
    found: dict[int, Generated] = {}
    for wanted, before in cases:
        for _ in range(before):
            found |= dict(made.step())
        made.add(wanted)
    found |= steps(made, 2000)
    for number, (wanted, _) in enumerate(cases):
        assert_same(found[number], alone(architecture, wanted))
        assert found[number].cached_tokens < len(wanted.prompt)
        assert found[number].cached_tokens == 0 or prefix_tokens
    assert made.bytes == made._prefixes.bytes
    assert made._prefixes.tokens <= prefix_tokens


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_conversation_is_what_transformers_makes_of_it(architecture: str) -> None:
    """Each turn's prompt is the one before, its answer and something new; only what is new is computed."""
    made = writer(architecture, prefix_tokens=500, prefill_tokens=11)
    tokens: list[int] = list(LONG[:30])
    computed = 0
    for turn in range(3):
        wanted = request(tokens, 6, temperature=0)
        with counted(kept(architecture)) as rows:
            (found,) = made.write([wanted])
        assert found.tokens == by_transformers(kept(architecture), wanted)
        assert found.cached_tokens == computed
        assert sum(rows) == len(tokens) - computed + 5
        computed = len(tokens) + 5  # the last token of an answer was chosen, but not computed
        tokens += [*found.tokens, 7 + turn, 3, 9]


@pytest.mark.parametrize("place", [0, 5, 16, 40, 58])
def test_a_changed_token_and_what_follows_it_are_not_reused(place: int) -> None:
    """Only what comes before it, if it is worth it."""
    made = writer(prefix_tokens=500)
    made.write([request(LONG, 1)])
    changed = [*LONG[:place], (LONG[place] + 1) % tiny.VOCABULARY, *LONG[place + 1 :]]
    wanted = request(changed, 6, temperature=0)
    (found,) = made.write([wanted])
    assert found.cached_tokens == (place if place >= 16 else 0)
    assert found.tokens == by_transformers(kept("llama"), wanted)
    made.forget_prefixes()
    assert made.bytes == 0
    assert made.write([wanted])[0].cached_tokens == 0


def test_what_other_weights_computed_is_forgotten() -> None:
    """`clear` drops all; and what is kept is used, not computed again, so that weights matter."""
    model = settled("llama")
    made = writer_for(model, Numbers(), 1, prefix_tokens=500)
    wanted = request(LONG, 6, temperature=0)
    (before,) = made.write([wanted])
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.3)
    made.clear()
    (after,) = made.write([wanted])
    assert after.cached_tokens == 0
    assert_same(after, write(model, [wanted])[0])
    assert after.logprobs != pytest.approx(before.logprobs, abs=1e-2)


def test_without_room_nothing_is_kept() -> None:
    made = writer()
    for _ in range(2):
        assert made.write([request(LONG, 2)])[0].cached_tokens == 0
    assert made.bytes == 0


def test_requests_that_run_beside_each_other_share_a_prompt() -> None:
    """As soon as one has computed it, not when it has been answered."""
    made = writer(prefix_tokens=500)
    made.add(request(LONG, 20))
    found = dict(made.step())
    made.add(request([*LONG, 3], 2))
    found |= steps(made)
    assert [found[number].cached_tokens for number in (0, 1)] == [0, 60]


def test_a_step_computes_no_more_than_it_may() -> None:
    """While a sequence is written, which gets a token in every step; the long prompt's first one comes in time."""
    made = writer(prefill_tokens=16)
    heard: list[tuple[int, int]] = []
    now = [0]
    made.add(request([5, 6], 12, on_token=lambda _: heard.append((0, now[0])), temperature=0))
    made.step()
    made.add(request(LONG, 3, on_token=lambda _: heard.append((1, now[0])), temperature=0))
    for now[0] in range(1, 6):
        with counted(kept("llama")) as rows:
            made.step()
        assert sum(row for row in rows if row > 2) <= 16
    # Two tokens in the step that computes a prompt's end: the first one, and the next at once.
    assert [when for who, when in heard if who == 0] == [0, 0, 1, 2, 3, 4, 5]
    assert [when for who, when in heard if who == 1] == [4, 4, 5]


def test_a_burst_is_spread_over_steps() -> None:
    """The first sequences go on while the others' prompts are computed; by default all are computed at once."""
    wanted = [request([5 + n] * 9, 4, seed=n) for n in range(6)]
    for prefill_tokens, prompts in ((20, [18, 18, 18]), (None, [54])):
        made = writer(slots=6, prefill_tokens=prefill_tokens)
        for each in wanted:
            made.add(each)
        found: dict[int, Generated] = {}
        for right in prompts:
            with counted(kept("llama")) as rows:
                found |= dict(made.step())
            assert rows[0] == right
            assert len(rows) == 2  # one of prompts, one of new tokens
        found |= steps(made)
        for number, each in enumerate(wanted):
            assert_same(found[number], alone("llama", each))


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    """Half of a step is for new prompts; and the long one goes on, however many new ones come."""
    made = writer(slots=4, prefill_tokens=8)
    first: dict[int, int] = {}
    now = [0]

    def listener(who: int) -> Callable[[NewToken], None]:
        return lambda _: first.update({who: first.get(who, now[0])})

    made.add(request(LONG, 2, on_token=listener(0)))
    made.step()
    for now[0] in range(1, 40):
        if 0 not in first:
            made.add(request([4, 3, 3, now[0]], 2, on_token=listener(now[0])))
        made.step()
    assert first[0] <= 15
    assert all(first[who] == who for who in range(1, first[0]))
    assert not made.busy


@pytest.mark.parametrize("loud", [0, 1, 2])
def test_nothing_is_lost_when_a_callback_raises(loud: int) -> None:
    """In a step that computes whole prompts, and others after a kept beginning or in parts."""
    made = writer(slots=3, prefix_tokens=500, prefill_tokens=30)
    made.write([request(LONG, 1)])
    prompts = [[*LONG, 5], [4, 4], [9] * 50]
    for place, prompt in enumerate(prompts):
        made.add(request(prompt, 3, on_token=heard_enough if place == loud else None))
    found: dict[int, Generated] = {}
    raised = 0
    while made.busy:
        try:
            found |= dict(made.step())
        except RuntimeError:
            raised += 1
    assert raised == 3
    for place, prompt in enumerate(prompts):
        assert_same(found[1 + place], alone("llama", request(prompt, 3)))


def test_copies_of_a_long_prompt_are_computed_once() -> None:
    """Also where it takes several steps; another request for the same prompt that comes meanwhile is a copy, too."""
    made = writer(slots=4, prefill_tokens=15)
    wanted = [request([5, 6], 12), *(request(LONG, 3, seed=seed) for seed in range(3))]
    found: dict[int, Generated] = {}
    with counted(kept("llama")) as rows:
        for each in wanted:
            made.add(each)
            found |= dict(made.step())
        found |= steps(made)
    assert sum(row for row in rows if row > 4) == 60
    for number, each in enumerate(wanted):
        assert_same(found[number], alone("llama", each))


@pytest.mark.parametrize("prefix_tokens", [0, 500])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_cancelled_while_its_prompt_is_computed(prefix_tokens: int, after: int) -> None:
    """It comes out of the next step; its slot is free; a copy that waited goes on; all memory is given back."""
    made = writer(slots=2, prefix_tokens=prefix_tokens, prefill_tokens=8)
    wanted = [request([5, 6], 30), request(LONG, 4), request(LONG, 4, seed=1), request([9, 9], 2)]
    numbers = [made.add(each) for each in wanted]
    found: dict[int, Generated] = {}
    for _ in range(after):
        found |= dict(made.step())
    made.cancel(numbers[1])
    found |= dict(made.step())
    assert (found[1].finish, found[1].tokens) == ("cancelled", ())
    found |= steps(made)
    for number in (0, 2, 3):
        assert_same(found[number], alone("llama", wanted[number]))
    assert made._forward.cache.bytes == 0
    assert (made._active, made._filling) == ([], [])
    if prefix_tokens and after == 3:  # what had been computed was not lost
        assert found[2].cached_tokens >= 16
    made.clear()
    assert made.bytes == 0


def test_waves_of_requests_leave_nothing_behind() -> None:
    """Memory after each wave is what it was after the first, cancelled requests or not."""
    made = writer(slots=4, prefix_tokens=100, prefill_tokens=16)
    held: list[int] = []
    for wave in range(4):
        numbers = [made.add(request([*LONG[:50], 3 + wave, n], 5)) for n in range(9)]
        for _ in range(3):
            made.step()
        for number in numbers[::2]:
            made.cancel(number)
        steps(made)
        held.append(made.bytes)
    assert max(held) <= held[0] * 100 // 50
    assert made._prefixes.tokens <= 100


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_seeded_request_does_not_depend_on_load(temperature: float) -> None:
    """Alone, and among 16 others that come and go, with parts and a prefix cache."""
    wanted = request(LONG[:50], 25, seed=11, temperature=temperature)
    right = alone("llama", wanted)
    made = writer(slots=8, prefix_tokens=300, prefill_tokens=24)
    others = [request(TALKS[n % len(TALKS)], 3 + 5 * (n % 4), seed=n) for n in range(16)]
    found: dict[int, Generated] = {}
    for each in others[:9]:
        made.add(each)
    number = made.add(wanted)
    for each in others[9:]:
        found |= dict(made.step())
        made.add(each)
    found |= steps(made)
    assert len(found) == 17
    assert_same(found[number], right)


def queue(*prompts: Sequence[int], **settings: Any) -> deque[ActiveSequence]:
    return deque(
        ActiveSequence(n, Request(prompt, Sampling(4), frozenset(), **settings), Draws(0, 4), frozenset())
        for n, prompt in enumerate(prompts)
    )


def taken(waiting: deque[ActiveSequence], filling: Sequence[Filling], room: int, free: int = 9, **more: Any) -> Any:
    found = take_prompts(waiting, filling, PrefixCache(0), free, room, **{"oversize": "split"} | more)
    whole = {prompt: [writing.number for writing in same] for prompt, same in found.whole.items()}
    return whole, [(part.writing.number, length) for part, length in found.parts], [each.number for each in waiting]


def test_which_prompts_are_taken_by_hand() -> None:
    """In order, as many as there is room and slots for; the first one in part, others wait for the next step."""
    a, b, c = (1,) * 3, (2,) * 4, (3,) * 9
    assert taken(queue(a, b, a, c), (), 8) == ({a: [0, 2], b: [1]}, [], [3])
    assert taken(queue(a, b, a, c), (), 6) == ({a: [0]}, [], [1, 2, 3])
    assert taken(queue(a, b, a, c), (), 100, free=2) == ({a: [0], b: [1]}, [], [2, 3])
    assert taken(queue(c, a), (), 8) == ({}, [(0, 8)], [1])
    assert taken(queue(c, a), (), 8, oversize="wait") == ({}, [], [0, 1])
    assert taken(queue(c, a), (), 8, oversize="whole") == ({c: [0]}, [], [1])
    assert taken(queue(a, c), (), 8, oversize="whole") == ({a: [0]}, [], [1])
    assert taken(queue(), (), 8) == ({}, [], [])
    begun = Filling(queue(c)[0], c, [], 2)
    assert taken(queue(c, a, c), (begun,), 8) == ({a: [1]}, [], [0, 2])
    assert taken(queue(c, a, prompt_logprobs=True), (begun,), 20) == ({c: [0], a: [1]}, [], [])


def test_which_parts_come_next_by_hand() -> None:
    """The earliest prompt first, to its end."""
    first, second = (Filling(writing, (1,) * 9, [], 4) for writing in queue((1,), (2,)))
    assert next_parts((first, second), 3) == [(first, 3)]
    assert next_parts((first, second), 5) == [(first, 5)]
    assert next_parts((first, second), 7) == [(first, 5), (second, 2)]
    assert next_parts((first, second), 70) == [(first, 5), (second, 5)]


@pytest.mark.parametrize(("field", "value"), [("prefix_tokens", -1), ("prefill_tokens", 0)])
def test_sizes_out_of_range_are_named(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"^{field} is {value}; it must be"):
        writer(**{field: value})
