"""How far annotators agree who judged the same answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import combinations

from prefine.data.audit.entries import Entry, at, excerpt_of
from prefine.data.audit.findings import MOST_EXAMPLES, AuditExample, AuditFinding, Severity, unchecked
from prefine.data.audit.judgements import ItemJudgement, JudgedItems
from prefine.data.audit.own_votes import RowVotes
from prefine.formatting import percent, plural
from prefine.intervals import Share

_FEWEST_COMPARED = 10
_FEWEST_OF_ONE = 20
_MOST_COMPARED_OF_AN_ITEM = 50


class Disagreement:
    """Compares the votes of different annotators on the same item, between rows and within them.

    Args:
        judgements: of all records.
    """

    def __init__(self, judgements: JudgedItems) -> None:
        self._judgements = judgements
        self._in_rows = RowVotes()

    def add(self, entry: Entry) -> None:
        """Take a record."""
        self._in_rows.add(entry)

    @property
    def annotators(self) -> int:
        """Different annotators that rows name."""
        return len(self._judgements.annotators)

    @property
    def agreement(self) -> float | None:
        """Share of pairs of votes on the same item that agree; None with too few of them."""
        agreeing, compared = self._compared()
        return agreeing / compared if compared >= _FEWEST_COMPARED else None

    @property
    def agreement_at_most(self) -> float | None:
        """The upper end of its 95 % interval."""
        agreeing, compared = self._compared()
        interval = Share(agreeing / compared, compared).interval if compared >= _FEWEST_COMPARED else None
        return None if interval is None else interval.high

    def _compared(self) -> tuple[int, int]:
        """Pairs of votes on one item by different annotators that agree, and all; within rows and between them."""
        agreeing, compared = self._in_rows.agreeing, self._in_rows.compared
        for first, second in self._by_two():
            compared += 1
            agreeing += first.direction == second.direction
        return agreeing, compared

    def _by_two(self) -> Iterator[tuple[ItemJudgement, ItemJudgement]]:
        """Pairs of judgements of one item by two annotators. Rows without one may be copies of each other."""
        for _, found in self._judgements.several():
            named = [judgement for judgement in found if judgement.annotator >= 0][:_MOST_COMPARED_OF_AN_ITEM]
            yield from ((one, two) for one, two in combinations(named, 2) if one.annotator != two.annotator)

    def finding(self) -> AuditFinding:
        """Of all records."""
        check, title = "disagreement", "Annotator disagreement"
        agreeing, compared = self._compared()
        if compared < _FEWEST_COMPARED:
            return unchecked(
                check,
                title,
                f"Only {plural(compared, 'pair')} of votes on the same answers; {_FEWEST_COMPARED} are needed."
                if compared
                else "No answers were judged by two annotators whom a column names, and no row lists several votes.",
                "Have a tenth of the items judged by two people, and keep a column annotator.",
            )
        count, share = compared - agreeing, 1 - agreeing / compared
        # Two votes with independent errors of rate e disagree with probability 2e(1 - e).
        error = (1 - (1 - 2 * min(share, 0.5)) ** 0.5) / 2
        people = f" by {plural(self.annotators, 'annotator')}" if self.annotators else ""
        return AuditFinding(
            check,
            title,
            Severity.HIGH
            if share >= 0.35
            else Severity.MEDIUM
            if share >= 0.2
            else Severity.LOW
            if count
            else Severity.NONE,
            f"Of {plural(compared, 'pair')} of votes{people} on the same answers, {percent(share)} disagree. If "
            f"everybody errs equally often and independently, {percent(error)} of single votes are wrong.",
            count,
            compared,
            "pairs of votes",
            "Clarify the instructions where votes differ; collect more votes on those items; train with "
            "dpo.label_smoothing of about that error rate."
            if share >= 0.2
            else "",
            examples=self._least_agreeing(),
            figures={
                "agreement": 1 - share,
                "error_rate": error,
                "annotators": self.annotators,
                "worst_annotators": self._outliers(),
            },
        )

    def _least_agreeing(self) -> list[AuditExample]:
        return [
            AuditExample(
                [at(self._judgements.places[each.number]) for each in found[:4]], self._judgements.text_of(item)
            )
            for item, found in _first(self._judgements.contradicted())
        ] or self._in_rows.examples

    def _outliers(self) -> list[dict[str, object]]:
        """Annotators with enough comparisons who disagree most with the others on the same items."""
        names = list(self._judgements.annotators)
        agreeing: Counter[int] = Counter()
        compared: Counter[int] = Counter()
        for pair in self._by_two():
            for each in pair:
                compared[each.annotator] += 1
                agreeing[each.annotator] += pair[0].direction == pair[1].direction
        shares = [
            (agreeing[who] / count, names[who], count) for who, count in compared.items() if count >= _FEWEST_OF_ONE
        ]
        return [
            {"annotator": excerpt_of(who), "agreement": share, "compared": count}
            for share, who, count in sorted(shares)[:5]
        ]


def _first(found: Iterator[tuple[bytes, list[ItemJudgement]]]) -> list[tuple[bytes, list[ItemJudgement]]]:
    return [each for each, _ in zip(found, range(MOST_EXAMPLES), strict=False)]
