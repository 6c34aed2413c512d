"""Trees lie end to end, each target is predicted from the token before it, and order depends on nothing but a seed."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefine.data.tokens.trees import (
    PackedBatch,
    Segment,
    TokenTree,
    collate,
    epoch_order,
    folds,
    microbatches,
    parts_of,
    token_offsets,
)

ids = st.lists(st.integers(0, 99), min_size=1, max_size=6)


beginnings = st.just([]) | st.just(list(range(50, 60)))


@st.composite
def trees(draw: Any) -> TokenTree:
    answers = tuple(draw(st.lists(ids, max_size=3)))
    masks = tuple(
        draw(st.none() | st.lists(st.booleans(), min_size=len(answer), max_size=len(answer))) for answer in answers
    )
    return TokenTree([*draw(beginnings), *draw(ids)], answers, masks, draw(st.integers(0, 1000)))


def test_the_example_of_the_docstring() -> None:
    batch = collate([TokenTree([5, 6], ([7, 8], [9]), (None, None), row=4)])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2]]
    assert batch.predict_from.tolist() == [1, 2, 1]
    assert batch.targets.tolist() == [7, 8, 9]
    assert batch.sequence.tolist() == [0, 0, 1]
    assert (batch.sequences, batch.rows, batch.segments) == (2, (4,), (Segment(0, 2, (2, 1)),))
    assert batch.sequence_lengths().tolist() == [2, 1]


def test_the_example_of_the_module() -> None:
    """p p p c c r r r | p p c c c r r, of which in the second chosen answer only the middle token counts."""
    first = TokenTree([1, 2, 3], ([4, 5], [6, 7, 8]), (None, None), row=10)
    second = TokenTree([11, 12], ([13, 14, 15], [16, 17]), ([False, True, False], None), row=20)
    batch = collate([first, second])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 14, 15, 16, 17]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 2, 3, 4, 2, 3]]
    # 4 follows the prompt's last token (2), 5 follows 4 (3); 6 follows the prompt again (2), then 5, 6.
    # Of the second tree 14 follows 13 (10); 16 follows the prompt's last token (9), 17 follows 16 (13).
    assert batch.predict_from.tolist() == [2, 3, 2, 5, 6, 10, 9, 13]
    assert batch.targets.tolist() == [4, 5, 6, 7, 8, 14, 16, 17]
    assert batch.sequence.tolist() == [0, 0, 1, 1, 1, 2, 3, 3]
    assert batch.segments == (Segment(0, 3, (2, 3)), Segment(8, 2, (3, 2)))
    assert (batch.sequences, batch.rows, batch.tokens) == (4, (10, 20), 15)
    assert batch.sequence_lengths().tolist() == [2, 3, 1, 2]


def test_a_common_beginning_stands_once() -> None:
    """s ×8 | p c c | p p c r r: both prompts begin with the eight; each keeps at least its last token."""
    common = list(range(1, 9))
    first = TokenTree([*common, 20], ([21, 22],), (None,))
    second = TokenTree([*common, 30, 31], ([32], [33, 34]), (None, None))
    batch = collate([first, second])
    assert batch.input_ids.tolist() == [[*common, 20, 21, 22, 30, 31, 32, 33, 34]]
    assert batch.position_ids.tolist() == [[*range(8), 8, 9, 10, 8, 9, 10, 10, 11]]
    assert batch.predict_from.tolist() == [8, 9, 12, 12, 14]
    assert batch.segments == (Segment(0, 8, ()), Segment(8, 1, (2,), 8), Segment(11, 2, (1, 2), 8))
    assert batch.last_tokens().tolist() == [10, 13, 15]
    same = TokenTree([*common, 9], ([1],), (None,))
    assert collate([same, same]).segments[0] == Segment(0, 8, ())
    short = [TokenTree([*common[:7], token], ([1],), (None,)) for token in (20, 30)]  # of seven tokens: not worth it
    assert collate(short).segments == (Segment(0, 8, (1,)), Segment(9, 8, (1,)))


def test_answers_of_which_nothing_counts_keep_their_place() -> None:
    batch = collate([TokenTree([1], ([2], [3]), ([False], None))])
    assert batch.sequence.tolist() == [1]
    assert batch.sequence_lengths().tolist() == [0, 1]


def test_no_trees_and_prompts_without_answers() -> None:
    for batch, tokens in ((collate([]), 0), (collate([TokenTree([1, 2], (), ())]), 2)):
        assert (batch.tokens, batch.sequences) == (tokens, 0)
        assert batch.targets.dtype == batch.predict_from.dtype == batch.sequence.dtype == torch.int64
        assert batch.sequence_lengths().tolist() == []


@settings(max_examples=100, deadline=None)
@given(st.lists(trees(), max_size=5))
def test_unpacked_again_every_answer_is_what_it_was(packed: list[TokenTree]) -> None:
    batch = collate(packed)
    row = batch.input_ids[0].tolist()
    shared = max((segment.shared for segment in batch.segments), default=0)
    saved = shared * (len(packed) - 1) if shared else 0
    assert len(row) == batch.tokens == batch.position_ids.shape[1] == sum(tree.tokens for tree in packed) - saved
    assert len(batch.targets) == sum(tree.supervised_tokens for tree in packed)
    assert batch.rows == tuple(tree.row for tree in packed)
    sequence = 0
    assert batch.position_ids[0, :shared].tolist() == list(range(shared))
    for tree, segment in zip(packed, batch.segments[1:] if shared else batch.segments, strict=True):
        start = segment.start + segment.prompt
        assert row[:shared] + row[segment.start : start] == list(tree.prompt)
        assert batch.position_ids[0, segment.start : start].tolist() == list(range(shared, len(tree.prompt)))
        for answer, mask, length in zip(tree.answers, tree.supervised, segment.answers, strict=True):
            assert row[start : start + length] == list(answer)
            first = len(tree.prompt)
            assert batch.position_ids[0, start : start + length].tolist() == list(range(first, first + length))
            check_targets(batch, sequence, [*tree.prompt, *answer], mask, first)
            start += length
            sequence += 1
    assert sequence == batch.sequences


def check_targets(batch: PackedBatch, sequence: int, whole: list[int], mask: list[bool] | None, first: int) -> None:
    """Of one sequence, prompt and answer: targets in order, each predicted from the position before its own."""
    mine = batch.sequence == sequence
    expected = [i for i in range(first, len(whole)) if mask is None or mask[i - first]]
    assert batch.targets[mine].tolist() == [whole[i] for i in expected]
    assert batch.position_ids[0, batch.predict_from[mine]].tolist() == [i - 1 for i in expected]
    assert batch.input_ids[0, batch.predict_from[mine]].tolist() == [whole[i - 1] for i in expected]


def test_last_tokens_by_hand() -> None:
    """p p p c c r r r | p p c c c r r: each answer's last stands at 4, 7, 12, 14, whatever counts in a loss."""
    first = TokenTree([1, 2, 3], ([4, 5], [6, 7, 8]), (None, [True, False, False]))
    second = TokenTree([11, 12], ([13, 14, 15], [16, 17]), ([False, False, False], None))
    assert collate([first, second]).last_tokens().tolist() == [4, 7, 12, 14]
    assert collate([first]).last_tokens().tolist() == [4, 7]


def test_last_tokens_are_told_by_length_and_not_by_an_id() -> None:
    """End of turn and padding, 2 and 0 say, may stand anywhere, also several times at the end."""
    batch = collate(
        [TokenTree([2, 0, 2], ([2, 5, 2, 2], [0, 0], [2]), (None, None, None)), TokenTree([0], ([0],), (None,))]
    )
    assert batch.last_tokens().tolist() == [6, 8, 9, 11]


@settings(max_examples=100, deadline=None)
@given(st.lists(trees(), max_size=5))
def test_last_tokens_are_those_of_the_answers_at_their_last_positions(packed: list[TokenTree]) -> None:
    batch = collate(packed)
    last = batch.last_tokens()
    ends = [(answer[-1], len(tree.prompt) + len(answer) - 1) for tree in packed for answer in tree.answers]
    assert last.shape == (batch.sequences,)
    assert last.dtype == torch.int64  # of no answers, too
    found = zip(batch.input_ids[0, last].tolist(), batch.position_ids[0, last].tolist(), strict=True)
    assert list(found) == ends
    assert last.tolist() == sorted(last.tolist())


def test_where_all_tokens_count_the_last_target_of_an_answer_is_its_last_token() -> None:
    tree = TokenTree([5, 6], ([7, 8, 9], [10], [11, 12]), (None, None, None))
    batch = collate([tree, tree])
    finals = [int((batch.sequence == answer).nonzero().max()) for answer in range(batch.sequences)]
    assert batch.input_ids[0, batch.last_tokens()].tolist() == batch.targets[finals].tolist()


def test_last_tokens_of_no_answers_are_indices_too() -> None:
    batch = collate([TokenTree([1, 2], (), ())])
    assert batch.input_ids[0, batch.last_tokens()].tolist() == []


def test_a_batch_moves_with_all_its_tensors() -> None:
    batch = collate([TokenTree([1], ([2],), (None,), 3)])
    moved = batch.to(torch.device("meta"))
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 5
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert (moved.rows, moved.segments, moved.sequences) == (batch.rows, batch.segments, batch.sequences)


@settings(max_examples=100, deadline=None)
@given(st.lists(trees(), max_size=12), st.integers(1, 40))
def test_microbatches_keep_order_and_budget(given_trees: list[TokenTree], budget: int) -> None:
    runs = list(microbatches(given_trees, budget))
    assert [tree for run in runs for tree in run] == given_trees
    for run in runs:
        assert run
        assert len(run) == 1 or sum(tree.tokens for tree in run) <= budget
    for run, following in pairwise(runs):  # no run ends early
        assert sum(tree.tokens for tree in run) + following[0].tokens > budget


def test_microbatches_read_no_further_than_needed() -> None:
    read = 0

    def endless() -> Any:
        nonlocal read
        while True:
            read += 1
            yield TokenTree([1, 2], ([3],), (None,))

    assert len(next(microbatches(endless(), 6))) == 2
    assert read == 3


@given(st.integers(0, 200), st.integers(0, 2**62), st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_an_epochs_order_is_a_permutation_and_depends_on_its_arguments_alone(rows: int, seed: int, epoch: int) -> None:
    torch.manual_seed(seed % 7)
    order = epoch_order(rows, seed, epoch)
    assert sorted(order) == list(range(rows))
    state = torch.get_rng_state()
    assert epoch_order(rows, seed, epoch) == order
    assert torch.equal(torch.get_rng_state(), state)
    if rows > 30:
        assert order != epoch_order(rows, seed, epoch + 1)
        assert order != epoch_order(rows, seed + 1, epoch)


@given(st.integers(0, 200), st.integers(1, 16), st.integers(0, 2**62))
@settings(max_examples=60, deadline=None)
def test_folds_are_of_equal_size_and_depend_on_their_arguments_alone(rows: int, count: int, seed: int) -> None:
    torch.manual_seed(seed % 7)
    state = torch.get_rng_state()
    part = folds(rows, count, seed)
    assert folds(rows, count, seed) == part
    assert torch.equal(torch.get_rng_state(), state)
    sizes = [part.count(number) for number in range(count)]
    assert len(part) == sum(sizes) == rows
    assert max(sizes) - min(sizes) <= 1
    if rows > 30 and count > 1:
        assert part != folds(rows, count, seed + 1)


def test_folds_are_drawn_and_not_cut_from_one_end_to_the_other() -> None:
    """Rows that stand together in a file are in different parts; an epoch's order is another draw."""
    part = folds(300, 3, 0)
    assert part != sorted(part)
    assert part != [row % 3 for row in range(300)]
    together = sum(one == next_one for one, next_one in pairwise(part))
    assert 60 < together < 140  # a third of 299, five standard deviations either way
    assert folds(5, 1, 3) == [0] * 5
    for epoch in range(3):
        order = epoch_order(300, 0, epoch)
        assert [part[row] for row in order] != [place % 3 for place in range(300)]


def test_token_offsets() -> None:
    assert token_offsets([3, 2]) == [0, 3, 5]
    assert token_offsets([]) == [0]


# --- Trees larger than a microbatch ------------------------------------------------------------------------------


def test_sixteen_answers_of_a_thousand_tokens_are_rows_of_the_budget() -> None:
    tree = TokenTree([1] * 100, tuple([2] * 1_000 for _ in range(16)), (None,) * 16, 7, apart=True)
    runs = list(microbatches([tree], 4_096))
    assert [sum(part.tokens for part in run) for run in runs] == [3_100] * 5 + [1_100]
    assert [collate(run).answers_of_rows for run in runs] == [
        ((7, range(first, min(16, first + 3))),) for first in range(0, 16, 3)
    ]


@given(trees(), st.integers(1, 40))
def test_parts_hold_each_answer_once_and_keep_to_the_budget_where_one_answer_does(tree: TokenTree, budget: int) -> None:
    parts = parts_of(replace(tree, apart=True), budget)
    assert tuple(answer for part in parts for answer in part.answers) == tree.answers
    assert tuple(mask for part in parts for mask in part.supervised) == tree.supervised
    assert [part.first for part in parts] == [sum(len(p.answers) for p in parts[:i]) for i in range(len(parts))]
    assert all(part.prompt == tree.prompt and part.row == tree.row for part in parts)
    assert all(part.tokens <= budget or len(part.answers) <= 1 for part in parts)
    assert parts_of(tree, budget) == [tree]  # a pair stays together
