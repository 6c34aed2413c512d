"""Whether the longer answer is the better one so often that length alone decides."""

from __future__ import annotations

from prefine.data.audit.entries import Entry
from prefine.data.audit.findings import AuditFinding, Severity, unchecked
from prefine.data.lengths import EvenSample
from prefine.formatting import percent, percent_range, plural
from prefine.intervals import Share
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

    def add(self, entry: Entry) -> None:
        """Take a record; ties, demonstrations and prompts say nothing about what is better."""
        record = entry.record
        if isinstance(record, Preference) and not record.tie:
            self._pairs += 1
            self._longer += len(record.chosen) > len(record.rejected)
            self._shorter += len(record.chosen) < len(record.rejected)
        elif isinstance(record, Vote):
            if self._votes.wants(self._votes_seen):
                self._votes.add((len(record.completion), record.label))
            self._votes_seen += 1

    @property
    def share(self) -> float | None:
        """Share of pairs of unequal length whose chosen answer is the longer one; None without pairs."""
        unequal = self._longer + self._shorter
        return self._longer / unequal if unequal else None

    def finding(self) -> AuditFinding:
        """Of all records."""
        check, title = "length_bias", "Length bias"
        if not self._pairs + self._votes_seen:
            return unchecked(check, title, "Only pairs and votes say which answers are better.")
        if self._pairs:
            share, of, unit = self.share, self._longer + self._shorter, "pairs"
            says = "The chosen answer is the longer one in {} of {} of unequal length ({})."
        else:
            share, of = self._longer_up()
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
            "A model can learn length instead of quality. Balance the lengths, or set dpo.length_normalized: true; "
            "watch the lengths of answers in the report."
            if severity is not Severity.NONE
            else "",
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
