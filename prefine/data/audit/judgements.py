"""What rows say about the same answers: repeated rows, and rows that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from prefine.data.audit.copies import Copies
from prefine.data.audit.drops import Drops, Why
from prefine.data.audit.entries import Entry, at, excerpt_of
from prefine.data.audit.findings import MOST_EXAMPLES, AuditExample, AuditFinding, by_share
from prefine.data.records.selection import Place, content_key, judged_item
from prefine.formatting import plural

ContradictionRule = Literal["keep", "drop", "majority"]


class ItemJudgement(NamedTuple):
    """One record's word on an item: see `judged_item`. `annotator` is the place in a list of names, -1 if unknown."""

    number: int
    direction: int
    annotator: int


class JudgedItems:
    """Exact duplicates and contradictions, from hashes.

    Two rows with the same content are duplicates, unless different annotators judged them: those are two votes.

    Args:
        places: of all records so far, by number; filled by the caller.
        drops: takes the rows of contradictions that a cleaned copy leaves out.
        copies: takes duplicates.
        rule: which rows of a contradiction are left out.

    Attributes:
        places: see above.
        annotators: names of annotators in rows, each with its number.
    """

    def __init__(self, places: Sequence[Place], drops: Drops, copies: Copies, rule: ContradictionRule = "keep") -> None:
        self.places = places
        self._drops = drops
        self._copies = copies
        self._rule = rule
        self._items: dict[bytes, ItemJudgement | list[ItemJudgement]] = {}
        self._contents: dict[tuple[bytes, int], int] = {}
        self.annotators: dict[str, int] = {}
        self._records = self._repeated = 0
        self._repeats: list[AuditExample] = []
        self._texts: dict[bytes, str] = {}

    def add(self, entry: Entry) -> bool:
        """Take a record; returns whether its item was judged before, by whatever record."""
        self._records += 1
        annotator = -1
        if entry.annotator is not None:
            annotator = self.annotators.setdefault(entry.annotator, len(self.annotators))
        key = (content_key(entry.record), annotator)
        first = self._contents.setdefault(key, entry.number)
        if first != entry.number:
            self._repeat(entry, first)
            return True
        item, direction = judged_item(entry.record)
        judgement, earlier = ItemJudgement(entry.number, direction, annotator), self._items.get(item)
        if earlier is None:
            self._items[item] = judgement
            return False
        if isinstance(earlier, list):
            earlier.append(judgement)
        else:
            self._items[item] = [earlier, judgement]
            self._texts.setdefault(item, excerpt_of(entry.prompt) if len(self._texts) < 10 * MOST_EXAMPLES else "")
        return True

    @property
    def duplicates(self) -> int:
        """Records that repeat an earlier one."""
        return self._repeated

    def text_of(self, item: bytes) -> str:
        """The start of an item's prompt; empty except for the first items with several judgements."""
        return self._texts.get(item, "")

    def findings(self) -> list[AuditFinding]:
        """Of all records; also decides which rows of contradictions are left out."""
        return [self._duplicates(), self._contradictions()]

    @property
    def contradictions(self) -> int:
        """Records that another one contradicts; those that repeat an earlier one do not count."""
        return sum(1 for _, found in self.contradicted() for judgement in found if judgement.direction)

    def _repeat(self, entry: Entry, first: int) -> None:
        self._repeated += 1
        self._copies.exact(entry.number, first)
        if len(self._repeats) < MOST_EXAMPLES:
            places = [at(entry.place), at(self.places[first])]
            self._repeats.append(AuditExample(places, excerpt_of(entry.prompt)))

    def _duplicates(self) -> AuditFinding:
        count, of = self._repeated, self._records
        return AuditFinding(
            "duplicates",
            "Exact duplicates",
            by_share(count, of, medium=0.01, high=0.1),
            f"{plural(count, 'record repeats', 'records repeat')} an earlier one exactly."
            if count
            else "No record repeats another one.",
            count,
            of,
            remedy="prefine's stages leave them out (data.deduplicate); --fix removes the rows. Look for a join or an "
            "export that ran twice."
            if count
            else "",
            examples=self._repeats,
        )

    def several(self) -> Iterator[tuple[bytes, list[ItemJudgement]]]:
        """Items with several judgements, by their hash."""
        return ((item, found) for item, found in self._items.items() if isinstance(found, list))

    def contradicted(self) -> Iterator[tuple[bytes, list[ItemJudgement]]]:
        """Those that were judged in both directions."""
        return (
            (item, found) for item, found in self.several() if {1, -1} <= {judgement.direction for judgement in found}
        )

    def _contradictions(self) -> AuditFinding:
        items = rows = 0
        different = self._records - self._repeated  # a copy of a judgement is no judgement of its own
        examples: list[AuditExample] = []
        for item, found in self.contradicted():
            items += 1
            sides = [judgement for judgement in found if judgement.direction]
            rows += len(sides)
            self._leave_out(sides)
            if len(examples) < MOST_EXAMPLES:
                places = [at(self.places[judgement.number]) for judgement in sides[:4]]
                up = sum(judgement.direction == sides[0].direction for judgement in sides)
                examples.append(AuditExample(places, self.text_of(item), f"{up} against {len(sides) - up}"))
        return AuditFinding(
            "contradictions",
            "Contradictory judgements",
            by_share(rows, different, medium=0.01, high=0.05),
            f"{plural(rows, 'record')} on {plural(items, 'item')} say the opposite of each other about the same "
            "answers."
            if items
            else "No two records judge the same answers in opposite ways.",
            rows,
            different,
            remedy="Read them: they are errors, or people disagree. --fix with --contradictions majority keeps what "
            "most say, drop removes both sides."
            if items
            else "",
            examples=examples,
            figures={"items": items},
        )

    def _leave_out(self, sides: Sequence[ItemJudgement]) -> None:
        if self._rule == "keep":
            return
        balance = sum(judgement.direction for judgement in sides)
        for judgement in sides:
            if self._rule == "drop" or judgement.direction * balance <= 0:
                other = next(each for each in sides if each.direction != judgement.direction)
                place = self.places[judgement.number]
                self._drops.drop(judgement.number, place, Why.CONTRADICTION, self.places[other.number])
