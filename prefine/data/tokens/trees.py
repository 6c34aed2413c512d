"""Token trees and the one collator that lays them end to end in a row, without padding.

A tree is a prompt and the answers that continue it. A pair is a tree with two answers, a demonstration a tree with
one. In the row each prompt occurs once, its answers after it:

    tokens     p p p c c r r r | p p c c c r r
    positions  0 1 2 3 4 3 4 5 | 0 1 2 3 4 2 3

If all prompts of a row have a common beginning, such as a system turn, it occurs once before all trees, as a part of
every prompt:

    tokens     s s s | p p c c r | p c c r r
    positions  0 1 2 | 3 4 5 6 5 | 3 4 5 4 5

Attention (models/forward/attention.py) lets an answer see its prompt and itself, nothing else, so this equals separate
sequences to rounding.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenTree:
    """One prompt and the answers that continue it, as token ids.

    Attributes:
        prompt: token ids, at least one (the first answer token is predicted from the last prompt token).
        answers: token ids of each answer, at least one each; may be empty for a prompt to generate from.
        supervised: for each answer, which of its tokens count; None for all.
        row: index of the record this came from, for cached values (reference log-probs, margins).
        apart: whether no answer needs another in the loss, so that a large tree may be computed in parts.
        first: in a part of such a tree, the index of its first answer in the whole tree.
    """

    prompt: Sequence[int]
    answers: tuple[Sequence[int], ...]
    supervised: tuple[Sequence[bool] | None, ...]
    row: int = 0
    apart: bool = False
    first: int = 0

    @property
    def tokens(self) -> int:
        """Tokens in the packed row, with the prompt once."""
        return len(self.prompt) + sum(map(len, self.answers))

    @property
    def supervised_tokens(self) -> int:
        """Tokens that count in the loss, over all answers."""
        return sum(
            len(answer) if mask is None else sum(mask)
            for answer, mask in zip(self.answers, self.supervised, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Segment:
    """The place of a tree in the row: `start`, then `prompt` tokens, then each of `answers` tokens.

    The row's first `shared` tokens belong to the prompt, too: they lie before it, once for all trees of the row.
    """

    start: int
    prompt: int
    answers: tuple[int, ...]
    shared: int = 0


@dataclass(frozen=True)
class PackedBatch:
    """Trees laid end to end. T tokens, S answers (sequences), R tokens that count (supervised targets).

    Attributes:
        input_ids: (1, T) int64.
        position_ids: (1, T) int64, restarting at each tree; every answer continues its prompt's positions.
        segments: places of the trees in the row, in order.
        predict_from: (R,) int64, index in the row of the hidden state that predicts each target.
        targets: (R,) int64, the token ids that count.
        sequence: (R,) int64 in [0, S), the answer each target belongs to; answers in tree order.
        sequences: S.
        rows: the trees' record indices, in order.
        answers_of_rows: for each tree its record index and which of the record's answers it holds: all, unless it is a
            part.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: tuple[Segment, ...]
    predict_from: Tensor
    targets: Tensor
    sequence: Tensor
    sequences: int
    rows: tuple[int, ...] = field(default=())
    answers_of_rows: tuple[tuple[int, range], ...] = field(default=())

    @property
    def tokens(self) -> int:
        """Tokens in the row, T."""
        return self.input_ids.shape[1]

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch with its tensors on `device`."""
        names = ("input_ids", "position_ids", "predict_from", "targets", "sequence")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})

    def last_tokens(self) -> Tensor:
        """(S,) int64: index in the row of each answer's last token, by lengths, never by a token's id."""
        ends: list[int] = []
        for segment in self.segments:
            start = segment.start + segment.prompt
            ends += [start + end - 1 for end in token_offsets(segment.answers)[1:]]
        return torch.tensor(ends, dtype=torch.int64, device=self.input_ids.device)

    def whole_lengths(self) -> list[int]:
        """Tokens of each of the S answers and its prompt."""
        return [s.shared + s.prompt + answer for s in self.segments for answer in s.answers]

    def part(self, sequences: Collection[int]) -> tuple[PackedBatch, Tensor]:
        """A batch of some of the answers (in [0, S)) after their prompts; and the indices of its targets in this batch,
        (R') int64.
        """
        device = self.input_ids.device
        shared = max((segment.shared for segment in self.segments), default=0)
        kept = list(range(shared))
        segments = [Segment(0, shared, ())] if shared else []
        rows: list[int] = []
        number = 0
        for place, segment in enumerate(self.segments[1:] if shared else self.segments):
            begins = token_offsets([segment.prompt, *segment.answers])
            own = [i for i in range(len(segment.answers)) if number + i in sequences]
            number += len(segment.answers)
            if not own:
                continue
            segments.append(Segment(len(kept), segment.prompt, tuple(segment.answers[i] for i in own), shared))
            rows += self.rows[place : place + 1]
            for run in (0, *(i + 1 for i in own)):
                kept += range(segment.start + begins[run], segment.start + begins[run + 1])
        index = torch.tensor(kept, dtype=torch.int64, device=device)
        moved = torch.zeros(self.tokens, dtype=torch.int64, device=device)
        moved[index] = torch.arange(len(kept), device=device)
        renumbered = torch.full((self.sequences,), -1, dtype=torch.int64)
        renumbered[sorted(sequences)] = torch.arange(len(sequences))
        sequence = renumbered.to(device)[self.sequence]
        chosen = torch.nonzero(sequence >= 0)[:, 0]
        part = PackedBatch(
            input_ids=self.input_ids[:, index],
            position_ids=self.position_ids[:, index],
            segments=tuple(segments),
            predict_from=moved[self.predict_from[chosen]],
            targets=self.targets[chosen],
            sequence=sequence[chosen],
            sequences=len(sequences),
            rows=tuple(rows),
        )
        return part, chosen

    def sequence_lengths(self) -> Tensor:
        """(S,) int64: how many tokens count in each answer."""
        return torch.bincount(self.sequence, minlength=self.sequences)


# A shorter common beginning saves less than gathering keys from two places costs.
_LEAST_SHARED_TOKENS = 8


def collate(trees: Sequence[TokenTree]) -> PackedBatch:
    """Lay trees end to end, after what all their prompts begin with.

    Example: prompt [5, 6] with answers [7, 8] and [9] becomes
        input_ids    [5 6 7 8 9]    position_ids [0 1 2 3 2]
        predict_from [1 2 1]        targets [7 8 9]        sequence [0 0 1]
    """
    shared = worth_sharing([tree.prompt for tree in trees])
    ids = list(trees[0].prompt[:shared]) if shared else []
    positions = list(range(shared))
    segments = [Segment(0, shared, ())] if shared else []
    predict_from: list[int] = []
    targets: list[int] = []
    sequence: list[int] = []
    sequences = 0
    for tree in trees:
        start, prompt = len(ids), len(tree.prompt)
        segments.append(Segment(start, prompt - shared, tuple(map(len, tree.answers)), shared))
        ids += tree.prompt[shared:]
        positions += range(shared, prompt)
        last = len(ids) - 1
        for answer, mask in zip(tree.answers, tree.supervised, strict=True):
            first = len(ids)
            sources = [last, *range(first, first + len(answer) - 1)]
            counted = range(len(answer)) if mask is None else [i for i, counts in enumerate(mask) if counts]
            predict_from += [sources[i] for i in counted]
            targets += [answer[i] for i in counted]
            sequence += [sequences] * len(counted)
            ids += answer
            positions += range(prompt, prompt + len(answer))
            sequences += 1
    return PackedBatch(
        input_ids=torch.tensor([ids], dtype=torch.int64),
        position_ids=torch.tensor([positions], dtype=torch.int64),
        segments=tuple(segments),
        predict_from=torch.tensor(predict_from, dtype=torch.int64),
        targets=torch.tensor(targets, dtype=torch.int64),
        sequence=torch.tensor(sequence, dtype=torch.int64),
        sequences=sequences,
        rows=tuple(tree.row for tree in trees),
        answers_of_rows=tuple((tree.row, range(tree.first, tree.first + len(tree.answers))) for tree in trees),
    )


def worth_sharing(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens of all prompts are computed once; 0 if that saves nothing."""
    shared = common_beginning(prompts) if len(prompts) > 1 else 0
    return shared if shared >= _LEAST_SHARED_TOKENS else 0


def common_beginning(prompts: Sequence[Sequence[int]]) -> int:
    """Length of the common beginning of all prompts, leaving each at least one token of its own."""
    shortest = min(map(len, prompts)) - 1
    # In lexical order, the first and the last share the shortest beginning.
    first, last = min(map(list, prompts)), max(map(list, prompts))
    return next((place for place in range(shortest) if first[place] != last[place]), shortest)


def runs(segments: Iterable[Segment]) -> Iterator[tuple[range, tuple[range, ...]]]:
    """Yield (queries, context) as ranges over the row, one a causal run, in row order.

    A run's keys are those of its context, then its own. The context is the common beginning and, except for a tree's
    first run, its prompt: a prompt and its first answer are one run.
    """
    for segment in segments:
        common = (range(segment.shared),) if segment.shared else ()
        prompt = range(segment.start, segment.start + segment.prompt)
        end = prompt.stop + (segment.answers[0] if segment.answers else 0)
        yield range(segment.start, end), common
        for length in segment.answers[1:]:
            yield range(end, end + length), (*common, prompt)
            end += length


def microbatches(trees: Iterable[TokenTree], max_tokens: int) -> Iterator[list[TokenTree]]:
    """Split trees into runs of at most `max_tokens` tokens each, in order and lazily.

    A tree longer than the budget is computed in parts if its answers may be apart. A longer part, or a pair, is a run
    of its own: the length limit admitted it, so it must be computed.
    """
    run: list[TokenTree] = []
    room = max_tokens
    for tree in (part for whole in trees for part in parts_of(whole, max_tokens)):
        if run and tree.tokens > room:
            yield run
            run, room = [], max_tokens
        run.append(tree)
        room -= tree.tokens
    if run:
        yield run


def parts_of(tree: TokenTree, max_tokens: int) -> list[TokenTree]:
    """The tree, or several trees with its answers in order if it is longer than `max_tokens` and may be split.

    Each has the whole prompt and as many answers as fit, at least one. An answer sees only its prompt and itself, so
    its numbers are those of the whole tree to rounding.
    """
    if not tree.apart or tree.tokens <= max_tokens:
        return [tree]
    starts = [0]
    used = len(tree.prompt)
    for place, answer in enumerate(tree.answers):
        if place > starts[-1] and used + len(answer) > max_tokens:
            starts.append(place)
            used = len(tree.prompt)
        used += len(answer)
    return [
        replace(tree, answers=tree.answers[a:b], supervised=tree.supervised[a:b], first=tree.first + a)
        for a, b in pairwise([*starts, len(tree.answers)])
    ]


def epoch_order(rows: int, seed: int, epoch: int) -> list[int]:
    """A permutation of range(rows) that depends only on its arguments, so that a resumed run gets the same one."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % (1 << 63))
    order: list[int] = torch.randperm(rows, generator=generator).tolist()
    return order


def folds(rows: int, count: int, seed: int) -> list[int]:
    """The part, in range(count), of each of range(rows): parts of equal size, drawn by the seed."""
    part = [0] * rows
    for place, row in enumerate(epoch_order(rows, seed, -1)):
        part[row] = place % count
    return part


def even_part(order: Sequence[int], part: int, parts: int) -> list[int]:
    """Part `part` of `order` cut into `parts` of equal size, or one less, without a short rest."""
    return list(order[len(order) * part // parts : len(order) * (part + 1) // parts])


def token_offsets(lengths: Iterable[int]) -> list[int]:
    """Start offsets of runs with the given lengths, then the total: [3, 2] -> [0, 3, 5]."""
    return [0, *accumulate(lengths)]
