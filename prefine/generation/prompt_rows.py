"""Selects the prompts of a queue that are computed next: whole, in parts, or after a cached prefix."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from prefine.generation.prefix_cache import LayerStates, PrefixCache
from prefine.generation.writer import ActiveSequence

# A shorter cached prefix saves less than a separate row costs.
_LEAST_REUSED_TOKENS = 16

Prompt = tuple[int, ...]
Oversize = Literal["split", "whole", "wait"]


@dataclass(eq=False)
class Filling:
    """A prompt that is computed in parts, or after a cached prefix.

    Attributes:
        writing: the sequence that has this prompt.
        prompt: token ids.
        runs: the cached prefix, until it is in a slot.
        computed: number of the prompt's tokens in the slot, `runs` included.
    """

    writing: ActiveSequence
    prompt: Prompt
    runs: list[tuple[LayerStates, int]]
    computed: int

    @property
    def rest(self) -> int:
        """Number of tokens that are not computed yet."""
        return len(self.prompt) - self.computed


# The tokens of a prompt that are computed next.
NextPart = tuple[Filling, int]


@dataclass
class TakenPrompts:
    """Prompts that were taken from the queue.

    Attributes:
        whole: new prompts that are computed as a whole, with the sequences of each.
        parts: parts of the other prompts.
    """

    whole: dict[Prompt, list[ActiveSequence]] = field(default_factory=dict)
    parts: list[NextPart] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Number of tokens to compute."""
        return sum(map(len, self.whole)) + sum(length for _, length in self.parts)


def take_prompts(
    queue: deque[ActiveSequence],
    filling: Sequence[Filling],
    prefixes: PrefixCache,
    free: int,
    room: int,
    oversize: Oversize,
) -> TakenPrompts:
    """Take up to `free` sequences with up to `room` prompt tokens from the queue, in order.

    A prompt that is being computed is not taken again: it stays in the queue until it can be copied.

    Args:
        filling: what is being computed.
        oversize: whether a part, all or none of a first prompt that exceeds `room` is taken.
    """
    taken = TakenPrompts()
    passed: list[ActiveSequence] = []
    begun = {each.prompt for each in filling}
    while queue and free:
        writing = queue.popleft()
        prompt = tuple(writing.request.prompt)
        if prompt in begun and can_be_copied(writing):
            passed.append(writing)
            continue
        if prompt not in taken.whole:
            runs = _kept_beginning(prefixes, writing)
            new = Filling(writing, prompt, runs, sum(length for _, length in runs))
            left = room - taken.tokens
            if new.rest > left and (left < room or oversize == "wait"):
                passed.append(writing)
                break
            length = min(new.rest, left) if oversize == "split" else new.rest
            if length < len(prompt):
                taken.parts.append((new, length))
                begun.add(prompt)
            else:
                taken.whole[prompt] = []
        if prompt in taken.whole:
            taken.whole[prompt].append(writing)
        free -= 1
    queue.extendleft(reversed(passed))
    return taken


def next_parts(filling: Sequence[Filling], room: int) -> list[NextPart]:
    """Up to `room` tokens of started prompts, the earliest first."""
    parts: list[NextPart] = []
    for each in filling:
        if room:
            parts.append((each, min(room, each.rest)))
            room -= parts[-1][1]
    return parts


def others_wait(queue: Iterable[ActiveSequence], filling: Sequence[Filling]) -> bool:
    """Whether the queue has prompts that are not being computed yet."""
    begun = {each.prompt for each in filling}
    return any(not can_be_copied(each) or tuple(each.request.prompt) not in begun for each in queue)


def can_be_copied(writing: ActiveSequence) -> bool:
    """Whether it needs only a copy of the prompt's keys and values; log-probabilities need hidden states."""
    return not writing.request.prompt_logprobs


def _kept_beginning(prefixes: PrefixCache, writing: ActiveSequence) -> list[tuple[LayerStates, int]]:
    """The cached prefix of a prompt, without its last token, which is always computed."""
    if not prefixes.room or writing.request.prompt_logprobs:
        return []
    runs = prefixes.find(writing.request.prompt[:-1])
    return runs if sum(length for _, length in runs) >= _LEAST_REUSED_TOKENS else []
