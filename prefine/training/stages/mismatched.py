"""KTO's KL baseline: how much likelier than under the reference are answers to other prompts?

Each prompt is continued by the answer of the nearest earlier tree of its group with another prompt; the last tree comes
before the first. Where all prompts of a group differ this is TRL's KTOTrainer. A group is an optimiser step, over all
microbatches and processes, or the whole held-out part. Which answer follows which prompt
is known before a run begins, so their log-probabilities under the reference are computed at its start, as those of the
rows, and kept in the cache.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from prefine.data.tokens.trees import TokenTree, collate, epoch_order, microbatches, token_offsets
from prefine.errors import RecipeError
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

    Answers are cut so that no tree is longer than the rows may be. A group whose prompts are all equal has none.

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
        self._prompts = _prompts(trees)
        self._starts = token_offsets(len(self._others(rows_of(number))) for number in range(groups))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: Any) -> Any:
        place = range(len(self))[index]
        if isinstance(place, range):
            return [self[each] for each in place]
        number = bisect_right(self._starts, place) - 1
        rows, within = self._rows_of(number), place - self._starts[number]
        return self._tree(rows[within], rows[self._others(rows)[within]], place)

    def __iter__(self) -> Iterator[TokenTree]:
        for number in range(len(self._starts) - 1):
            yield from self.group(number)

    def group(self, number: int) -> Iterator[TokenTree]:
        """The mismatched trees of one group, in the order of its rows."""
        start, rows = self._starts[number], self._rows_of(number)
        for place, other in enumerate(self._others(rows)):
            yield self._tree(rows[place], rows[other], start + place)

    def size(self, number: int) -> int:
        """How many trees a group has."""
        return self._starts[number + 1] - self._starts[number]

    def empty_groups(self) -> int:
        """How many groups have no tree."""
        return sum(self.size(number) == 0 for number in range(len(self._starts) - 1))

    def _others(self, rows: Sequence[int]) -> list[int]:
        return places_of_others([self._prompts[row] for row in rows])

    def _tree(self, own: int, answered: int, row: int) -> TokenTree:
        prompt, other = self._trees[own].prompt, self._trees[answered]
        room = self._max_tokens - len(prompt)
        (answer,), (mask,) = other.answers, other.supervised
        return TokenTree(prompt, (answer[:room],), (None if mask is None else mask[:room],), row)


def heldout_order(trees: Sequence[TokenTree], seed: int) -> list[int]:
    """File order where all prompts differ, so that each answer follows one prompt; else an order drawn by the seed.

    Votes on the answers to one prompt often lie together in a file, the liked one first: in file order only the last of
    them would follow other prompts.
    """
    if len(set(_prompts(trees))) == len(trees):
        return list(range(len(trees)))
    return epoch_order(len(trees), seed, 0)


def _prompts(trees: Sequence[TokenTree]) -> list[bytes]:
    """Equal for trees with equal prompts."""
    return [hashlib.blake2b(array("q", tree.prompt).tobytes()).digest() for tree in trees]


def places_of_others(prompts: Sequence[object]) -> list[int]:
    """For each place the nearest earlier one with another prompt, the last before the first; [] if all are equal.

    Example: A A B C B gives 4 4 1 2 3.
    """
    count = len(prompts)
    first = next((place for place in range(count) if prompts[place] != prompts[place - 1]), None)
    if first is None:
        return []
    found = [0] * count
    for place in (*range(first, count), *range(first)):
        before = (place - 1) % count
        found[place] = found[before] if prompts[place] == prompts[before] else before
    return found


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
    def of_group(self, number: int, processes: Processes | None = None) -> float | None:
        """The baseline of a group, nats; without dropout. None for a group without mismatched trees.

        Args:
            processes: those that share the work, each with its part; None computes all of it here.
        """
        trees, count = self._trees.group(number), self._trees.size(number)
        if not count:
            return None
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
    """The baseline of every step of a run; group n is step n. Warns of steps without one.

    Raises:
        RecipeError: no step has one.
    """
    trees, section, limit = session.prepared.train, session.recipe.training, session.recipe.data.max_length_tokens
    rows, steps = len(trees), total_steps(len(trees), section)
    found = MismatchedTrees(trees, steps, lambda step: rows_of_step(step, rows, section), limit)
    if not len(found):
        raise RecipeError(
            f"kto.loss is 'kto', whose KL baseline needs answers to different prompts in a step, but in each of the "
            f"{steps} steps all prompts are equal",
            "Set kto.loss to apo_zero_unpaired, or add votes on other prompts.",
        )
    if empty := found.empty_groups():
        session.warnings.append(
            f"In {empty} of {steps} steps all prompts are equal, so that there is no KL baseline: 0 is used. A larger "
            "training.batch_size brings different prompts together."
        )
    decides = [session.prepared.digests["train"], steps, section.seed, section.batch_size, limit]
    return KlBaseline(session, found, _digest(decides), "train")


def baseline_of_heldout(session: Session[StageRecipe]) -> KlBaseline:
    """The baseline of the held-out rows, as one group. Warns if there is none."""
    trees, limit, seed = session.prepared.heldout, session.recipe.data.max_length_tokens, session.recipe.training.seed
    order = heldout_order(trees, seed)
    found = MismatchedTrees(trees, 1, lambda _: order, limit)
    if len(trees) and not len(found):
        session.warnings.append(
            "All held-out votes have the same prompt, so that they have no KL baseline: their losses and margins are "
            "computed with 0. Hold out votes on other prompts, too."
        )
    return KlBaseline(session, found, _digest([session.prepared.digests["heldout"], limit, seed]), "heldout")


def _digest(decides: list[Any]) -> str:
    return hashlib.sha256(json.dumps(["mismatched prompts", *decides]).encode()).hexdigest()
