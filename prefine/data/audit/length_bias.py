"""Whether the longer answer is the better one so often that length alone decides."""

from __future__ import annotations

import heapq

from prefine.data.audit.entries import Entry, at, shown
from prefine.data.audit.findings import MOST_EXAMPLES, AuditExample, AuditFinding, Severity, unchecked
from prefine.data.lengths import EvenSample
from prefine.formatting import percent, percent_range, plural
from prefine.intervals import Share
from prefine.recipe.dpo import DpoSection
from prefine.records import Preference, Vote

_FEWEST = 20
_MOST_VOTES = 20_000
# From the first on, length predicts preferences about as well as a good reward model.
_HIGH, _MEDIUM = 0.8, 0.65


class LengthCheck:
    """Compares lengths in characters: of the two answers of a pair; of answers voted up and down."""

    def __init__(self) -> None:
        self._pairs = self._longer = self._shorter = 0
        self._votes_seen = 0
        self._votes: EvenSample[tuple[int, bool]] = EvenSample(_MOST_VOTES)
        self._longest = {True: _Furthest(), False: _Furthest()}  # by whether the better answer is the longer one

    def add(self, entry: Entry) -> None:
        """Take a record; ties, demonstrations and prompts say nothing about what is better."""
        record = entry.record
        if isinstance(record, Preference) and not record.tie:
            self._pairs += 1
            difference = len(record.chosen) - len(record.rejected)
            self._longer += difference > 0
            self._shorter += difference < 0
            if difference:
                self._longest[difference > 0].add(abs(difference), entry)
        elif isinstance(record, Vote):
            if self._votes.wants(self._votes_seen):
                self._votes.add((len(record.completion), record.label))
            self._votes_seen += 1
            self._longest[record.label].add(len(record.completion), entry)

    @property
    def share(self) -> float | None:
        """Share of pairs of unequal length whose chosen answer is the longer one; without pairs the probability that an
        answer voted up is longer than one voted down. None with too few of them.
        """
        share, of = self._measured()
        return share if of >= _FEWEST else None

    def _measured(self) -> tuple[float | None, int]:
        """The share, and how many it is of; None of nothing."""
        if not self._pairs:
            return self._longer_up()
        unequal = self._longer + self._shorter
        return (self._longer / unequal if unequal else None), unequal

    def finding(self) -> AuditFinding:
        """Of all records."""
        check, title = "length_bias", "Length bias"
        if not self._pairs + self._votes_seen:
            return unchecked(check, title, "Only pairs and votes say which answers are better.")
        share, of = self._measured()
        if self._pairs:
            unit = "pairs"
            says = "The chosen answer is the longer one in {} of {} of unequal length ({})."
        else:
            unit = "comparisons"
            says = "Of an answer voted up and one voted down, the one voted up is longer in {} of {} ({})."
        if share is None or of < _FEWEST:
            return unchecked(
                check, title, f"Only {plural(of, unit[:-1])} with answers of unequal length; {_FEWEST} are needed."
            )
        found = Share(share, of)
        lean = max(share, 1 - share)
        severity = Severity.HIGH if lean >= _HIGH else Severity.MEDIUM if lean >= _MEDIUM else Severity.NONE
        if severity is not Severity.NONE and found.interval is not None and found.interval.contains(0.5):
            severity = Severity.NONE
        interval = f"95 % interval {percent_range(found.interval)}" if found.interval else ""
        return AuditFinding(
            check,
            title,
            severity,
            says.format(percent(share), plural(of, unit[:-1]), interval),
            round(share * of),
            of,
            unit,
            _remedy(pairs=self._pairs > 0) if severity is not Severity.NONE else "",
            [] if severity is Severity.NONE else [_example(entry) for entry in self._longest[share > 0.5].entries()],
            figures={"share": share, "equal": self._pairs - self._longer - self._shorter},
        )

    def _longer_up(self) -> tuple[float | None, int]:
        """Probability that an answer voted up is longer than one voted down (Mann-Whitney), and the smaller number."""
        lengths = self._votes.values
        up, down = [size for size, is_up in lengths if is_up], [size for size, is_up in lengths if not is_up]
        if not up or not down:
            return None, 0
        from scipy.stats import mannwhitneyu

        return float(mannwhitneyu(up, down).statistic) / (len(up) * len(down)), min(len(up), len(down))


class _Furthest:
    """The records with the largest lengths."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Entry]] = []

    def add(self, length: int, entry: Entry) -> None:
        """Take a record with the length by which it is ranked; of equal ones the first stay."""
        item = (length, -entry.number, entry)
        if len(self._heap) < MOST_EXAMPLES:
            heapq.heappush(self._heap, item)
        elif item > self._heap[0]:
            heapq.heapreplace(self._heap, item)

    def entries(self) -> list[Entry]:
        """The largest first."""
        return [entry for _, _, entry in sorted(self._heap, key=lambda item: item[:2], reverse=True)]


def _example(entry: Entry) -> AuditExample:
    if isinstance(entry.record, Vote):
        side = "up" if entry.record.label else "down"
        return AuditExample([at(entry.place)], shown(entry), f"{side}, {len(entry.record.completion):,} characters")
    chosen, rejected = entry.answers
    note = f"chosen {len(chosen):,} characters, rejected {len(rejected):,}"
    return AuditExample([at(entry.place)], shown(entry), note)


def _remedy(*, pairs: bool) -> str:
    what = f"With DPO: {against_length()}" if pairs else "Balance the lengths."
    return f"A model can learn length instead of quality. {what} Watch the lengths of answers in the report."


def against_length(*, pull: float = 1.0) -> str:
    """What keeps DPO from learning length, as a sentence.

    Args:
        pull: how many times its default the beta is to be.
    """
    beta = pull * DpoSection(length_normalized=True).beta
    return (
        f"Balance the lengths, or set dpo.length_normalized: true and dpo.beta: {beta:g} together: means over tokens "
        "need a larger beta than sums."
    )
