"""Held-out preference pairs that are never optimised: does the policy still rank answers as people did?"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from prefine.data.reading.quarantine import Quarantine
from prefine.data.reading.source_names import source_names
from prefine.data.records.stream import read_records
from prefine.data.tokens.fitting import fit
from prefine.data.tokens.store import FitCounts
from prefine.data.tokens.template import ChatTemplate
from prefine.data.tokens.trees import TokenTree, collate, microbatches
from prefine.errors import DataError, TemplateError
from prefine.intervals import evenly_chosen
from prefine.objectives.masked import paired, per_sequence
from prefine.recipe.rl import PpoRecipe
from prefine.records import Preference
from prefine.training.rl.policy import Policy

_MOST_PAIRS = 200

log = logging.getLogger("prefine")


def read_pairs(recipe: PpoRecipe, template: ChatTemplate) -> list[TokenTree]:
    """A sample of the recipe's held-out pairs, evenly spaced and without ties; empty if the recipe names no source.

    Raises:
        DataError: no pair fits into data.max_length_tokens.
    """
    sources = recipe.heldout_pairs
    if sources is None:
        return []
    with Quarantine(None) as quarantine:
        read = read_records(source_names(sources), Preference, quarantine=quarantine)
        records = [record for record in read if not record.tie]
    counts = FitCounts()
    found: list[TokenTree] = []
    refusals: list[str] = []
    for place in evenly_chosen(len(records), _MOST_PAIRS):
        try:
            tree = fit(template, records[place], recipe.data.max_length_tokens, counts)
        except TemplateError as error:
            refusals.append(str(error))
        else:
            found += [] if tree is None else [tree]
    if refusals:
        log.warning("heldout_pairs: the chat template refuses %d pairs, first: %s", len(refusals), refusals[0])
    if not found:
        raise DataError(f"heldout_pairs: {sources} has no pair that fits", "Name preferences, or leave it out.")
    return found


@torch.no_grad()
def pair_accuracy(policy: Policy, pairs: Sequence[TokenTree], max_tokens: int) -> float:
    """Share of pairs whose preferred answer is the more likely one under the policy, by the mean log-probability of
    its tokens."""
    right = 0
    for run in microbatches(pairs, max_tokens):
        batch = collate(run).to(policy.model.device)
        sums = per_sequence(policy.logprobs(batch), batch.sequence, batch.sequences)
        means = paired(sums / batch.sequence_lengths())
        right += int((means.chosen > means.rejected).sum())
    return right / len(pairs)
