"""Mismatched answers and the KL baseline, against a computation without any of its shortcuts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefine.data.tokens.trees import TokenTree, collate
from prefine.models.loading.load import LoadedModel, load_model
from prefine.objectives.masked import per_sequence
from prefine.recipe.sections import LoraSection, ModelSection, TrainingSection
from prefine.training.stages import mismatched
from prefine.training.stages.mismatched import (
    KlBaseline,
    MismatchedTrees,
    baseline_of_steps,
    heldout_order,
    places_of_others,
)
from tests.training.stepping import learning_weights


def tree(prompt: list[int], answer: list[int], row: int, mask: list[bool] | None = None) -> TokenTree:
    return TokenTree(prompt, (answer,), (mask,), row)


ROWS = [
    tree([1], [10, 11], 0),
    tree([2, 2], [20], 1),
    tree([3, 3, 3], [30, 31, 32], 2, [False, True, True]),
    tree([4], [40], 3),
    tree([5], [50], 4),
]


def test_each_prompt_gets_the_answer_before_it_in_its_group() -> None:
    """Groups [1, 0, 2], [3] and [4, 2], at most five tokens: answers are cut at their end, prompts never."""
    groups = [[1, 0, 2], [3], [4, 2]]
    found = MismatchedTrees(ROWS, 3, lambda number: groups[number], 5)
    wanted = [
        tree([2, 2], [30, 31, 32], 0, [False, True, True]),
        tree([1], [20], 1),
        tree([3, 3, 3], [10, 11], 2),
        tree([5], [30, 31, 32], 3, [False, True, True]),
        tree([3, 3, 3], [50], 4),
    ]
    assert list(found) == wanted
    assert [found[place] for place in range(5)] == found[0:5] == wanted
    assert [found.size(number) for number in range(3)] == [3, 0, 2]
    assert [each.row for each in found.group(2)] == [3, 4]
    assert MismatchedTrees(ROWS, 1, lambda _: [2, 3], 4)[0] == tree([3, 3, 3], [40], 0)
    assert MismatchedTrees(ROWS, 1, lambda _: [3, 2], 2)[0] == tree([4], [30], 0, [False])
    assert len(MismatchedTrees([], 1, lambda _: [], 5)) == 0


def test_answers_of_the_same_prompt_are_passed_over() -> None:
    """Votes on two answers of each prompt, one after the other; a group of one prompt has no mismatched answers."""
    rows = [tree([row // 2], [10 + row], row) for row in range(6)]
    found = MismatchedTrees(rows, 3, lambda number: [[0, 1, 2, 3, 4], [4, 5], [5, 1, 0]][number], 5)
    assert [(each.prompt[0], each.answers[0][0]) for each in found] == [
        *[(0, 14), (0, 14), (1, 11), (1, 11), (2, 13)],
        *[(2, 10), (0, 15), (0, 15)],
    ]
    assert ([found.size(number) for number in range(3)], found.empty_groups()) == ([5, 0, 3], 1)
    assert [found[place] for place in range(8)] == list(found)


def test_held_out_votes_are_mixed_where_prompts_repeat() -> None:
    """Of liked and disliked answers to each prompt, both kinds follow other prompts."""
    assert heldout_order(ROWS, 7) == [0, 1, 2, 3, 4]
    rows = [tree([row // 2], [row % 2], row) for row in range(40)]
    order = heldout_order(rows, 7)
    assert order == heldout_order(rows, 7) != heldout_order(rows, 8)
    assert sorted(order) == list(range(40))
    assert 10 < sum(each.answers[0][0] for each in MismatchedTrees(rows, 1, lambda _: order, 5)) < 30


@given(st.lists(st.sampled_from("ABC"), max_size=9))
def test_the_nearest_earlier_place_with_another_prompt(prompts: list[str]) -> None:
    count = len(prompts)
    wanted = [
        next((p - back) % count for back in range(1, count) if prompts[p - back] != prompts[p])
        for p in range(count)
        if len(set(prompts)) > 1
    ]
    assert places_of_others(prompts) == wanted


@pytest.fixture(scope="module")
def loaded(model: Path) -> LoadedModel:
    section = ModelSection(name=str(model), dtype="float32", device="cpu")
    return learning_weights(load_model(section, LoraSection(r=4, alpha=8)))


def measured(loaded: LoadedModel, trees: list[TokenTree], limit: int) -> tuple[KlBaseline, list[list[int]]]:
    """The baselines of a run of two epochs of two steps; and each step's rows."""
    section = TrainingSection(batch_size=3, epochs=2, max_tokens_per_microbatch=limit)
    session: Any = SimpleNamespace(
        loaded=loaded,
        prepared=SimpleNamespace(train=trees, digests={"train": f"rows {limit}"}),
        recipe=SimpleNamespace(training=section, data=SimpleNamespace(max_length_tokens=64)),
        processes=SimpleNamespace(main_first=torch.no_grad),
        display=SimpleNamespace(progress=lambda *_: torch.no_grad(), advance=lambda _: None, say=lambda _: None),
    )
    return baseline_of_steps(session), [mismatched.rows_of_step(step, len(trees), section) for step in range(4)]


def test_the_baseline_of_a_step_is_the_mean_log_ratio_of_its_mismatched_answers(loaded: LoadedModel) -> None:
    """Each pair computed by itself with the adapter and without; dropout would not matter, as the model is not in
    training.
    """
    generator = torch.Generator().manual_seed(0)
    trees = [
        tree(*(torch.randint(0, 200, (n + row % 3,), generator=generator).tolist() for n in (4, 6)), row)
        for row in range(5)
    ]
    for limit in (16, 1000):
        baseline, steps = measured(loaded, trees, limit)
        assert [len(rows) for rows in steps] == [2, 3, 2, 3]
        raw = []
        for number, rows in enumerate(steps):
            ratios = []
            for place, row in enumerate(rows):
                batch = collate([tree(list(trees[row].prompt), list(trees[rows[place - 1]].answers[0]), 0)])
                with torch.no_grad():
                    mine, theirs = (
                        per_sequence(loaded.packed(batch, **how), batch.sequence, 1) for how in ({}, {"adapter": None})
                    )
                ratios.append(float(mine - theirs))
            raw.append(sum(ratios) / len(ratios))
            assert baseline.of_group(number) == pytest.approx(max(0.0, raw[-1]), abs=1e-4)
        assert max(raw) > 1e-3
