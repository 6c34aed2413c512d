"""Several votes within one row: columns that list what each annotator said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from prefine.data.audit.entries import Entry, at, excerpt_of
from prefine.data.audit.findings import MOST_EXAMPLES, AuditExample
from prefine.data.records.row_flags import plain_name
from prefine.data.records.selection import Place

_COLUMNS = frozenset(
    (
        *("votes", "annotations", "annotator_votes", "individual_preference", "individual_preferences", "judgements"),
        *("judgments", "labels_by_annotator", "annotator_labels", "ratings_by_annotator", "raw_votes"),
    )
)
_KEYS = ("preferred", "preference", "choice", "label", "vote", "winner", "score", "overall_preference")


class RowVotes:
    """Counts agreement of votes within rows.

    Attributes:
        agreeing, compared: pairs of votes in one row.
        examples: the first rows whose votes differ.
    """

    def __init__(self) -> None:
        self.agreeing = self.compared = 0
        self.examples: list[AuditExample] = []
        self._last: Place | None = None

    def add(self, entry: Entry) -> None:
        """Take a record; several records of one row have the same votes."""
        if entry.place == self._last:
            return
        self._last = entry.place
        for name, value in entry.row.items():
            if isinstance(value, list | tuple) and len(value) > 1 and _holds_votes(name):
                self._count(entry, _votes(value))

    def _count(self, entry: Entry, votes: Sequence[str]) -> None:
        counts = Counter(votes)
        self.agreeing += sum(count * (count - 1) // 2 for count in counts.values())
        self.compared += len(votes) * (len(votes) - 1) // 2
        if len(counts) > 1 and len(self.examples) < MOST_EXAMPLES:
            said = ", ".join(f"{vote}: {count}" for vote, count in counts.most_common(4))
            self.examples.append(AuditExample([at(entry.place)], excerpt_of(entry.prompt), excerpt_of(said)))


@lru_cache(maxsize=1_000)
def _holds_votes(column: str) -> bool:
    return plain_name(column) in _COLUMNS


def _votes(listed: Sequence[Any]) -> list[str]:
    """The votes in a list. Of numbers on both sides of 0 only the sign: strengths of one preference agree."""
    found = [each for each in map(_vote, listed) if each is not None]
    if any(isinstance(each, int | float) and each < 0 for each in found):
        return ["-" if each < 0 else "+" if each > 0 else "0" for each in found if not isinstance(each, str)]
    return [each.strip().lower() if isinstance(each, str) else f"{each:g}" for each in found]


def _vote(value: Any) -> str | float | None:
    if isinstance(value, Mapping):
        value = next((value[key] for key in _KEYS if value.get(key) is not None), None)
    return value if isinstance(value, str | int | float) else None
