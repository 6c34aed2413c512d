"""KTO's KL baseline: how much likelier than under the reference are answers to other prompts?

Each prompt is continued by the answer of the tree before it in its group, the first one by that of the last, as TRL's
KTOTrainer does. A group is an optimiser step, over all microbatches and processes, or the whole held-out part. Which
answer follows which prompt is known before a run begins, so their log-probabilities under the reference are computed at
its start, as those of the rows, and kept in the cache.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from prefine.data.tokens.trees import TokenTree, collate, microbatches, token_offsets
from prefine.models.forward.packed import evaluating
from prefine.objectives.kto import kl_baseline
from prefine.objectives.masked import per_sequence
from prefine.recipe.stage import StageRecipe
from prefine.recipe.steps import total_steps
from prefine.training.loop.processes import Processes
from prefine.training.loop.schedule import rows_of_step
from prefine.training.run.session import Session
from prefine.training.stages.reference import reference_of_trees


class MismatchedTrees(Sequence[TokenTree]):
    """The mismatched trees of all groups, end to end; a tree's `row` is its index here.

    Answers are cut so that no tree is longer than the rows may be. A group of one row has none.

    Args:
        trees: rows with one answer each.
        groups: number of groups.
        rows_of: the rows of a group.
        max_tokens: of a prompt and its answer; more than any prompt.
    """

    def __init__(
        self, trees: Sequence[TokenTree], groups: int, rows_of: Callable[[int], Sequence[int]], max_tokens: int
    ) -> None:
        self._trees = trees
        self._rows_of = rows_of
        self._max_tokens = max_tokens
        sizes = (len(rows_of(number)) for number in range(groups))
        self._starts = token_offsets(size if size > 1 else 0 for size in sizes)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: Any) -> Any:
        place = range(len(self))[index]
        if isinstance(place, range):
            return [self[each] for each in place]
        number = bisect_right(self._starts, place) - 1
        return self._tree(self._rows_of(number), place - self._starts[number], place)

    def __iter__(self) -> Iterator[TokenTree]:
        for number in range(len(self._starts) - 1):
            yield from self.group(number)

    def group(self, number: int) -> Iterator[TokenTree]:
        """The mismatched trees of one group, in the order of its rows."""
        start, rows = self._starts[number], self._rows_of(number)
        for place in range(self._starts[number + 1] - start):
            yield self._tree(rows, place, start + place)

    def size(self, number: int) -> int:
        """How many trees a group has."""
        return self._starts[number + 1] - self._starts[number]

    def _tree(self, rows: Sequence[int], place: int, row: int) -> TokenTree:
        prompt, other = self._trees[rows[place]].prompt, self._trees[rows[place - 1]]
        room = self._max_tokens - len(prompt)
        (answer,), (mask,) = other.answers, other.supervised
        return TokenTree(prompt, (answer[:room],), (None if mask is None else mask[:room],), row)


class KlBaseline:
    """Measures the baseline of a group with the current policy.

    Args:
        session: the opened run, before its first step.
        trees: the mismatched trees.
        digest: hash of all that they depend on.
        part: train or heldout.
    """

    def __init__(self, session: Session[StageRecipe], trees: MismatchedTrees, digest: str, part: str) -> None:
        self._model = session.loaded.packed
        self._trees = trees
        self._max_tokens = session.recipe.training.max_tokens_per_microbatch
        self._reference: Tensor = reference_of_trees(session, trees, digest, f"{part}, with answers of other prompts")

    @torch.no_grad()
    def of_group(self, number: int, processes: Processes | None = None) -> float:
        """The baseline of a group, nats; without dropout. 0 for a group without mismatched trees.

        Args:
            processes: those that share the work, each with its part; None computes all of it here.
        """
        trees, count = self._trees.group(number), self._trees.size(number)
        if not count:
            return 0.0
        own = trees if processes is None else processes.share(list(trees))
        total = 0.0
        with evaluating(self._model):
            for run in microbatches(own, self._max_tokens):
                batch = collate(run).to(self._model.device)
                sums = per_sequence(self._model(batch), batch.sequence, batch.sequences).float().cpu()
                total += float((sums - self._reference[list(batch.rows)]).sum(dtype=torch.float64))
        if processes is not None:
            total = processes.sum({"log_ratio": total})["log_ratio"]
        return kl_baseline(total / count)


def baseline_of_steps(session: Session[StageRecipe]) -> KlBaseline:
    """The baseline of every step of a run; group n is step n."""
    trees, section, limit = session.prepared.train, session.recipe.training, session.recipe.data.max_length_tokens
    rows, steps = len(trees), total_steps(len(trees), section)
    found = MismatchedTrees(trees, steps, lambda step: rows_of_step(step, rows, section), limit)
    decides = [session.prepared.digests["train"], steps, section.seed, section.batch_size, limit]
    return KlBaseline(session, found, _digest(decides), "train")


def baseline_of_heldout(session: Session[StageRecipe]) -> KlBaseline:
    """The baseline of the held-out rows, as one group."""
    trees, limit = session.prepared.heldout, session.recipe.data.max_length_tokens
    found = MismatchedTrees(trees, 1, lambda _: range(len(trees)), limit)
    return KlBaseline(session, found, _digest([session.prepared.digests["heldout"], limit]), "heldout")


def _digest(decides: list[Any]) -> str:
    return hashlib.sha256(json.dumps(["mismatched", *decides]).encode()).hexdigest()
