"""Training data whose prompts are in the held-out data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from prefine.data.audit.drops import Drops, Why
from prefine.data.audit.entries import Entry, at, excerpt_of
from prefine.data.audit.findings import MOST_EXAMPLES, AuditExample, AuditFinding, by_share, unchecked
from prefine.data.audit.similar import (
    BLOCK,
    THRESHOLD,
    Signature,
    SimilarTexts,
    numbers_in,
    shingles,
    signatures,
    similarity,
    sketches,
)
from prefine.data.records.selection import Place, group_of
from prefine.formatting import percent, plural


class Leaks:
    """Records of the training data whose prompt is in the held-out data, exactly or nearly.

    Exactly: as `prompt_group`, without case, spacing and end punctuation.

    Args:
        drops: takes the leaks; `near_too` also near ones.
    """

    def __init__(self, drops: Drops, *, near_too: bool) -> None:
        self._drops = drops
        self._near_too = near_too
        self._groups: dict[str, Place] = {}
        self._index: SimilarTexts[tuple[Place, int, Signature]] = SimilarTexts()
        self._waiting: list[Entry] = []
        self._records = self._exact = self._near = 0
        self._examples: dict[bool, list[AuditExample]] = {False: [], True: []}

    def hold_out(self, entry: Entry) -> None:
        """Take a record of the held-out data; all of them come before any other."""
        group = group_of(entry.record)
        if group not in self._groups:
            self._groups[group] = entry.place
            self._waiting.append(entry)
            if len(self._waiting) == BLOCK:
                self._index_waiting()

    def add(self, entry: Entry) -> None:
        """Take a record of the training data."""
        if not self._records:
            self._index_waiting()
        self._records += 1
        group = group_of(entry.record)
        if group in self._groups:
            self._note(entry, 1.0, self._groups[group], exact=True)
        elif self._groups:
            self._waiting.append(entry)
            if len(self._waiting) == BLOCK:
                self._look()

    def findings(self) -> list[AuditFinding]:
        """Of all records."""
        self._look()
        if not self._groups:
            why = "No held-out file was given, so leaks into it were not looked for."
            return [unchecked("leaks", "Leaks into held-out data", why, "Name it with --heldout FILE.")]
        return [
            self._finding("leaks", "Leaks into held-out data", self._exact, False),
            self._finding("near_leaks", "Near leaks into held-out data", self._near, True),
        ]

    def _finding(self, check: str, title: str, count: int, near: bool) -> AuditFinding:
        how = "nearly one" if near else "one"
        says = f"The prompt of {plural(count, 'record')} is {how} of the {len(self._groups):,} held-out prompts."
        remedy = (
            "Remove them, or the held-out figures are too good: --fix with --near does."
            if near
            else "prefine's stages leave them out; --fix removes the rows for other programs."
        )
        return AuditFinding(
            check,
            title,
            by_share(count, self._records, medium=0.0, high=0.01),
            says if count else "None found.",
            count,
            self._records,
            "records",
            remedy if count else "",
            self._examples[near],
        )

    def _index_waiting(self) -> None:
        block, self._waiting = self._waiting, []
        for entry, sketch, own in _signed(block):
            self._index.add(sketch, (entry.place, _asked(entry), own))

    def _look(self) -> None:
        block, self._waiting = self._waiting, []
        for entry, sketch, own in _signed(block):
            self._look_at(entry, sketch, own)

    def _look_at(self, entry: Entry, sketch: Any, own: Signature) -> None:
        found = [
            (likeness, place)
            for place, asked, other in self._index.candidates(sketch)
            if asked == _asked(entry) and (likeness := similarity(other, own)) >= THRESHOLD
        ]
        if found:
            likeness, place = max(found, key=lambda each: each[0])
            self._note(entry, likeness, place, exact=False)

    def _note(self, entry: Entry, likeness: float, other: Place, *, exact: bool) -> None:
        if exact:
            self._exact += 1
        else:
            self._near += 1
        if exact or self._near_too:
            self._drops.drop(entry.number, entry.place, Why.LEAK if exact else Why.NEAR_LEAK, other)
        examples = self._examples[not exact]
        if len(examples) < MOST_EXAMPLES:
            note = "" if exact else f"{percent(likeness)} of the prompt"
            examples.append(AuditExample([at(entry.place), at(other)], excerpt_of(entry.prompt), note))


def _asked(entry: Entry) -> int:
    return numbers_in(entry.prompt)


def _signed(block: Sequence[Entry]) -> Iterator[tuple[Entry, Any, Signature]]:
    """Entries with the sketch and the signature of their prompts."""
    if not block:
        return
    prompts = [shingles(entry.prompt) for entry in block]
    yield from zip(block, sketches(prompts), signatures(prompts), strict=True)
