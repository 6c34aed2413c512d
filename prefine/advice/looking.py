"""Looks at a user's files, each by itself: what kind of records it has, and how many."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prefine.advice.situation import Situation, situation_of
from prefine.data.audit.facts import DataFacts, data_facts


def look(
    sources: Sequence[str], reward: str | None = None, seen: Callable[[str, DataFacts], None] = lambda name, facts: None
) -> Situation:
    """The situation in files.

    Args:
        sources: files, folders, dataset ids or sample:….
        reward: what scores any answer, as in reward.name.
        seen: called with each source and its facts.

    Raises:
        DataError: a source cannot be read, or has no usable row.
    """
    found = []
    for source in dict.fromkeys(sources):
        facts = data_facts([source])
        seen(source, facts)
        found.append((source, facts))
    return situation_of(found, reward)
