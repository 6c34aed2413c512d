"""Records that nearly repeat or contradict an earlier one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, NamedTuple

from prefine.data.audit.copies import Copies
from prefine.data.audit.entries import Entry, at, shown
from prefine.data.audit.findings import MOST_EXAMPLES, AuditExample, AuditFinding, by_share
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
from prefine.data.records.selection import Place, judged_item
from prefine.formatting import percent, plural
from prefine.records import Preference

MOST_INDEXED = 200_000
"""Records that later ones are compared with; each takes about 4 KB of memory."""


class _Seen(NamedTuple):
    """What is kept of a record: signatures of the prompt and of each answer, with the answers' numbers of shingles."""

    number: int
    direction: int
    numbers: int
    prompt: Signature
    answers: tuple[Signature, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class _Case:
    """A record and the earlier one that it nearly equals; the answers are swapped if `swapped`."""

    likeness: float
    number: int
    swapped: bool


class NearDuplicates:
    """Records that nearly repeat an earlier one: prompt and answers are both similar and have the same numbers in them.

    With the same judgement they are near duplicates; with the opposite one, near contradictions.

    Args:
        places: see JudgedItems.
        copies: takes near duplicates; None to leave none out.

    Attributes:
        near, opposed: numbers of records that nearly repeat, or nearly contradict, an earlier one.
    """

    def __init__(self, places: Sequence[Place], copies: Copies | None) -> None:
        self._places = places
        self._copies = copies
        self._index: SimilarTexts[_Seen] = SimilarTexts()
        self._waiting: list[Entry] = []
        self._indexed = 0
        self.near: list[int] = []
        self.opposed: list[int] = []
        self._examples: dict[bool, list[tuple[float, AuditExample]]] = {False: [], True: []}

    def add(self, entry: Entry) -> None:
        """Take a record whose item was not judged before."""
        self._waiting.append(entry)
        if len(self._waiting) == BLOCK:
            self._look()

    def findings(self, records: int) -> list[AuditFinding]:
        """Of all records; `records` counts exact duplicates, too."""
        self._look()
        return [
            self._finding(
                "near_duplicates",
                "Near duplicates",
                len(self.near),
                records,
                False,
                f"{plural(len(self.near), 'record nearly repeats', 'records nearly repeat')} an earlier one: at least "
                f"{percent(THRESHOLD)} of the three-word runs of the prompt and of the answers are the same.",
                "Keep one of each, or they count several times: --fix with --near keeps the first one.",
            ),
            self._finding(
                "near_contradictions",
                "Near contradictions",
                len(self.opposed),
                records,
                True,
                f"{plural(len(self.opposed), 'record says', 'records say')} the opposite of an earlier one about "
                "nearly the same answers.",
                "Read them: a small edit turned the preference around, or one of the two is wrong.",
            ),
        ]

    def _finding(
        self, check: str, title: str, count: int, of: int, opposed: bool, says: str, remedy: str
    ) -> AuditFinding:
        examples = [example for _, example in self._examples[opposed]]
        says = says if count else "None found."
        if self._indexed > MOST_INDEXED:
            says += f" Only the first {MOST_INDEXED:,} different records were compared with all later ones."
        severity = by_share(count, of, medium=0.02, high=0.15)
        return AuditFinding(check, title, severity, says, count, of, "records", remedy if count else "", examples)

    def _look(self) -> None:
        block, self._waiting = self._waiting, []
        if not block:
            return
        prompts = [shingles(entry.prompt) for entry in block]
        answers = [[shingles(answer) for answer in entry.answers] for entry in block]
        wholes = sketches([[*prompt, *chain(*each)] for prompt, each in zip(prompts, answers, strict=True)])
        of_prompts, of_answers = signatures(prompts), iter(signatures([each for both in answers for each in both]))
        for entry, whole, of_prompt, both in zip(block, wholes, of_prompts, answers, strict=True):
            sizes = tuple(map(len, both))
            own = tuple(islice(of_answers, len(both)))
            seen = _Seen(entry.number, judged_item(entry.record)[1], _numbers(entry), of_prompt, own, sizes)
            case = self._case(entry, seen, whole)
            if case is None:
                if self._indexed < MOST_INDEXED:
                    self._index.add(whole, seen)
                self._indexed += 1
            else:
                self._note(entry, case)

    def _case(self, entry: Entry, seen: _Seen, whole: Any) -> _Case | None:
        """The most similar earlier record, if one is similar enough."""
        is_pair = isinstance(entry.record, Preference)
        best: _Case | None = None
        for other in self._index.candidates(whole):
            if other.numbers != seen.numbers or similarity(other.prompt, seen.prompt) < THRESHOLD:
                continue
            likeness = _likeness(seen, other.answers)
            swapped = _likeness(seen, other.answers[::-1]) if is_pair else 0.0
            opposed = swapped > likeness if is_pair else other.direction != seen.direction
            likeness = max(likeness, swapped)
            if likeness >= THRESHOLD and (best is None or likeness > best.likeness):
                best = _Case(likeness, other.number, opposed and seen.direction * other.direction != 0)
        return best

    def _note(self, entry: Entry, case: _Case) -> None:
        if case.swapped:
            self.opposed.append(entry.number)
        else:
            self.near.append(entry.number)
            if self._copies is not None:
                self._copies.near(entry.number, case.number)
        examples = self._examples[case.swapped]
        if len(examples) < MOST_EXAMPLES:
            places = [at(entry.place), at(self._places[case.number])]
            examples.append(
                (case.likeness, AuditExample(places, shown(entry), f"{percent(case.likeness)} of the answers"))
            )


def _likeness(seen: _Seen, answers: tuple[Signature, ...]) -> float:
    """The similarity of the answers, each weighted by its length; 1 without answers."""
    if not answers:
        return 1.0
    parts = zip(seen.sizes, seen.answers, answers, strict=True)
    return sum(size * similarity(own, other) for size, own, other in parts) / sum(seen.sizes)


def _numbers(entry: Entry) -> int:
    """As numbers_in, the same whichever of two answers comes first."""
    return hash((numbers_in(entry.prompt), *sorted(map(numbers_in, entry.answers))))
