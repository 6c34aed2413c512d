"""Records that nearly repeat or contradict an earlier one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from prefine.data.audit.drops import Drops, Why
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


class _Seen(NamedTuple):
    number: int
    direction: int
    numbers: int
    prompt: Signature
    answers: Signature


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
        drops: takes near duplicates; None to leave none out.
    """

    def __init__(self, places: Sequence[Place], drops: Drops | None) -> None:
        self._places = places
        self._drops = drops
        self._index: SimilarTexts[_Seen] = SimilarTexts()
        self._waiting: list[Entry] = []
        self._records = self._near = self._opposed = 0
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
                self._near,
                records,
                False,
                f"{plural(self._near, 'record nearly repeats', 'records nearly repeat')} an earlier one: at least "
                f"{percent(THRESHOLD)} of the three-word runs of the prompt and of the answers are the same.",
                "Keep one of each, or they count several times: --fix with --near removes the later ones.",
            ),
            self._finding(
                "near_contradictions",
                "Near contradictions",
                self._opposed,
                records,
                True,
                f"{plural(self._opposed, 'record says', 'records say')} the opposite of an earlier one about nearly "
                "the same answers.",
                "Read them: a small edit turned the preference around, or one of the two is wrong.",
            ),
        ]

    def _finding(
        self, check: str, title: str, count: int, of: int, opposed: bool, says: str, remedy: str
    ) -> AuditFinding:
        examples = [example for _, example in self._examples[opposed]]
        says = says if count else "None found."
        severity = by_share(count, of, medium=0.02, high=0.15)
        return AuditFinding(check, title, severity, says, count, of, "records", remedy if count else "", examples)

    def _look(self) -> None:
        block, self._waiting = self._waiting, []
        self._records += len(block)
        if not block:
            return
        prompts = [shingles(entry.prompt, "p") for entry in block]
        answers = [_sides(entry.answers) for entry in block]
        wholes = sketches([prompt + answer for prompt, answer in zip(prompts, answers, strict=True)])
        of_prompts, of_answers = signatures(prompts), signatures(answers)
        swapped = {place: _sides(entry.answers[::-1]) for place, entry in enumerate(block) if _is_judged(entry)}
        turned = dict(zip(swapped, sketches([prompts[k] + each for k, each in swapped.items()]), strict=True))
        of_turned = dict(zip(swapped, signatures(list(swapped.values())), strict=True)) if swapped else {}
        for place, entry in enumerate(block):
            _, direction = judged_item(entry.record)
            numbers = numbers_in(entry.text) if len(entry.answers) < 2 else _numbers(entry)
            seen = _Seen(entry.number, direction, numbers, of_prompts[place], of_answers[place])
            case = self._case(entry, seen, wholes[place], turned.get(place), of_turned.get(place))
            if case is None:
                self._index.add(wholes[place], seen)
            else:
                self._note(entry, case)

    def _case(self, entry: Entry, seen: _Seen, whole: Any, turned: Any, of_turned: Signature | None) -> _Case | None:
        found = self._best(whole, seen, seen.answers)
        if found is not None:
            opposed = not isinstance(entry.record, Preference) and found[1].direction != seen.direction
            return _Case(found[0], found[1].number, opposed)
        if turned is not None and of_turned is not None:
            found = self._best(turned, seen, of_turned)
            if found is not None:
                return _Case(found[0], found[1].number, True)
        return None

    def _best(self, sketch: Any, seen: _Seen, answers: Signature) -> tuple[float, _Seen] | None:
        best: tuple[float, _Seen] | None = None
        for other in self._index.candidates(sketch):
            if other.numbers != seen.numbers or similarity(other.prompt, seen.prompt) < THRESHOLD:
                continue
            likeness = similarity(other.answers, answers)
            if likeness >= THRESHOLD and (best is None or likeness > best[0]):
                best = likeness, other
        return best

    def _note(self, entry: Entry, case: _Case) -> None:
        if case.swapped:
            self._opposed += 1
        else:
            self._near += 1
            if self._drops is not None:
                self._drops.drop(entry.number, entry.place, Why.NEAR_DUPLICATE, self._places[case.number])
        examples = self._examples[case.swapped]
        if len(examples) < MOST_EXAMPLES:
            places = [at(entry.place), at(self._places[case.number])]
            examples.append(
                (case.likeness, AuditExample(places, shown(entry), f"{percent(case.likeness)} of the answers"))
            )


def _sides(answers: Sequence[str]) -> list[str]:
    return [each for side, answer in enumerate(answers) for each in shingles(answer, str(side))]


def _numbers(entry: Entry) -> int:
    """As numbers_in, the same whichever of two answers comes first."""
    return hash((numbers_in(entry.prompt), *sorted(map(numbers_in, entry.answers))))


def _is_judged(entry: Entry) -> bool:
    return isinstance(entry.record, Preference) and not entry.record.tie
