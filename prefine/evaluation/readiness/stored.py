"""The records in a run's token stores: those a reward model was trained on, and held-out ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from prefine.data.records.selection import group_of, prompt_group
from prefine.data.tokens.store import TokenStore
from prefine.data.tokens.trees import folds
from prefine.intervals import evenly_chosen
from prefine.recipe.reward import RewardRecipe
from prefine.records import Conversation, Preference, Vote

Judgement = Preference | Vote
Kind = type[Preference] | type[Vote]


def stored_records(store: TokenStore, kind: Kind, most: int | None = None) -> Iterator[Judgement]:
    """The records of a store: all, or at most this many, evenly spaced."""
    rows = range(len(store)) if most is None else evenly_chosen(len(store), most)
    return (kind.model_validate_json(store.record_json(row)) for row in rows)


def trained_records(store: TokenStore, kind: Kind, recipe: RewardRecipe) -> list[tuple[Judgement, int | None]]:
    """Some training records, each with the head that skipped it; None with one head, which skips none."""
    heads = recipe.reward.heads
    left_out = folds(len(store), heads, recipe.training.seed)
    return [
        (kind.model_validate_json(store.record_json(row)), left_out[row] if heads > 1 else None)
        for row in evenly_chosen(len(store), recipe.readiness.trained_pairs)
    ]


def prompts_trained_on(store: TokenStore, kind: Kind) -> Callable[[Conversation], bool]:
    """Whether a prompt was trained on, apart from case and spacing."""
    groups = {group_of(record) for record in stored_records(store, kind)}
    return lambda prompt: prompt_group(prompt) in groups


def kind_stored(store: TokenStore) -> Kind:
    """The kind of a store's records."""
    return Vote if len(store) and "label" in json.loads(store.record_json(0)) else Preference
