"""A cache of keys and values of computed sequences, for later ones that begin with the same tokens.

It is a radix tree: an edge holds a run of tokens, and sequences with a common prefix share its runs (Zheng et al. 2023,
arXiv 2312.07104, sec. 3). The least recently used leaves are removed first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

# For each attention layer the keys (K, D, T) and values (K, T, D) of a run of T tokens.
LayerStates = dict[nn.Module, tuple[Tensor, Tensor]]


@dataclass(eq=False)
class _Run:
    """A run of tokens.

    Attributes:
        children: runs that continue it, by their first token.
        used: when it was last part of a sequence that was looked up or added.
    """

    tokens: tuple[int, ...]
    states: LayerStates
    children: dict[int, _Run] = field(default_factory=dict)
    used: int = 0


class PrefixCache:
    """Keys and values of sequences; valid while the weights and the active adapter do not change.

    Args:
        room: the most tokens that are kept; 0 keeps nothing.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.tokens = 0
        self._root = _Run((), {})
        self._clock = 0

    def clear(self) -> None:
        """Forget everything."""
        self._root = _Run((), {})
        self.tokens = 0

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(each.nbytes for _, run in self._runs() for pair in run.states.values() for each in pair)

    def find(self, tokens: Sequence[int]) -> list[tuple[LayerStates, int]]:
        """The longest cached prefix of `tokens`, as runs: states, and how many of their tokens belong to it."""
        self._clock += 1
        found = list(self._along(tokens))
        for run, _ in found:
            run.used = self._clock
        return [(run.states, matched) for run, matched in found]

    def add(self, tokens: Sequence[int], read: Callable[[int, int], LayerStates]) -> None:
        """Keep a sequence, as far as there is room.

        Args:
            read: returns the states of the tokens from one position up to another; called for those not cached yet.
        """
        tokens = tuple(tokens[: self.room])
        self._clock += 1
        parent, place = self._root, 0
        for run, matched in list(self._along(tokens)):
            place += matched
            key = tokens[place - matched]
            if matched < len(run.tokens) and place < len(tokens):
                parent.children[key] = _split(run, matched)
            parent = parent.children[key]
            parent.used = self._clock
        if place < len(tokens):
            new = _Run(tokens[place:], read(place, len(tokens)), used=self._clock)
            parent.children[new.tokens[0]] = new
            self.tokens += len(new.tokens)
            self._make_room()

    def _along(self, tokens: Sequence[int]) -> Iterator[tuple[_Run, int]]:
        """The cached runs along `tokens`, and how many tokens of each match: all of them, except in the last run."""
        run, place = self._root, 0
        while place < len(tokens) and (child := run.children.get(tokens[place])) is not None:
            pairs = zip(child.tokens, tokens[place : place + len(child.tokens)], strict=False)
            matched = next((n for n, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
            matched = min(len(child.tokens), len(tokens) - place) if matched is None else matched
            yield child, matched
            if matched < len(child.tokens):
                return
            run, place = child, place + matched

    def _make_room(self) -> None:
        while self.tokens > self.room:
            leaves = ((parent, run) for parent, run in self._runs() if not run.children)
            parent, oldest = min(leaves, key=lambda pair: pair[1].used)
            del parent.children[oldest.tokens[0]]
            self.tokens -= len(oldest.tokens)

    def _runs(self) -> Iterator[tuple[_Run, _Run]]:
        """All runs but the root, each with its parent."""
        waiting = [self._root]
        while waiting:
            parent = waiting.pop()
            for run in parent.children.values():
                waiting.append(run)
                yield parent, run


def _split(run: _Run, at: int) -> _Run:
    """Split a run in two: the first `at` tokens, which are returned, and the rest below them."""
    # Copies: a slice would keep the memory of the whole tensor.
    front = {layer: (keys[..., :at].clone(), values[:, :at].clone()) for layer, (keys, values) in run.states.items()}
    rest = {layer: (keys[..., at:].clone(), values[:, at:].clone()) for layer, (keys, values) in run.states.items()}
    first = _Run(run.tokens[:at], front, {run.tokens[at]: run}, run.used)
    run.tokens, run.states = run.tokens[at:], rest
    return first
