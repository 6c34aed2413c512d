"""Whether columns that name categories, and the votes themselves, are balanced."""

from __future__ import annotations

from collections import Counter
from typing import Any

from prefine.data.audit.entries import Entry, excerpt_of
from prefine.data.audit.findings import AuditFinding, Severity, unchecked
from prefine.data.records.row_flags import plain_name
from prefine.formatting import listing, percent, plural
from prefine.records import Preference, Vote

_COLUMNS = frozenset(
    (
        *("category", "categories", "task", "task_type", "task_name", "type", "topic", "domain", "subset", "source"),
        *("dataset", "data_source", "difficulty", "intent", "subject", "label_source", "language", "lang", "criterion"),
    )
)
_MOST_VALUES = 100
_MOST_CHARACTERS = 60
_FEWEST = 5
_DOMINANT = 0.8
_RARE = 0.01
_SHOWN = 8


class Categories:
    """Counts the values of category columns, and thumbs or ties."""

    def __init__(self) -> None:
        self._values: dict[str, Counter[str]] = {}
        self._records = 0
        self.ties = self.thumbs_up = self.votes = 0

    def add(self, entry: Entry) -> None:
        """Take a record."""
        self._records += 1
        if isinstance(entry.record, Vote):
            self.votes += 1
            self.thumbs_up += entry.record.label
        elif isinstance(entry.record, Preference):
            self.ties += entry.record.tie
        for name, value in entry.row.items():
            if isinstance(value, str) and 0 < len(value) <= _MOST_CHARACTERS and _is_category(name):
                counts = self._values.setdefault(name, Counter())
                if value in counts or len(counts) <= _MOST_VALUES:
                    counts[value] += 1

    def findings(self) -> list[AuditFinding]:
        """Of all records."""
        return [*([self._votes()] if self.votes else []), *([self._ties()] if self.ties else []), self._columns()]

    def _votes(self) -> AuditFinding:
        down = self.votes - self.thumbs_up
        fewer = min(down, self.thumbs_up) / self.votes
        severity = Severity.HIGH if fewer < 0.02 else Severity.MEDIUM if fewer < 0.1 else Severity.NONE
        return AuditFinding(
            "vote_balance",
            "Thumbs up and down",
            severity,
            f"{percent(self.thumbs_up / self.votes, 1)} of {plural(self.votes, 'vote')} are up.",
            min(down, self.thumbs_up),
            self.votes,
            "votes",
            "There is too little of the rarer vote to learn from: collect more of it, or weight it "
            "(kto.desirable_weight, kto.undesirable_weight)."
            if severity is not Severity.NONE
            else "",
        )

    def _ties(self) -> AuditFinding:
        share = self.ties / self._records
        return AuditFinding(
            "ties",
            "Ties",
            Severity.MEDIUM if share >= 0.3 else Severity.LOW,
            f"{plural(self.ties, 'pair is a tie', 'pairs are ties')} ({percent(share, 1)}).",
            self.ties,
            self._records,
            "pairs",
            "DPO leaves ties out. Many ties mean that the two answers are too much alike: sample them from different "
            "models or at a higher temperature.",
        )

    def _columns(self) -> AuditFinding:
        check, title = "categories", "Category balance"
        usable = {name: counts for name, counts in self._values.items() if 1 < len(counts) <= _MOST_VALUES}
        if not usable:
            return unchecked(check, title, "No column names a category (category, task, topic, source, …).")
        lines, severity, rare_in_all = [], Severity.NONE, 0
        for name, counts in usable.items():
            total = counts.total()
            value, most = counts.most_common(1)[0]
            rare = [each for each, count in counts.items() if count < max(_FEWEST, _RARE * total)]
            rare_in_all += len(rare)
            shown = [f"{excerpt_of(each)} {percent(count / total)}" for each, count in counts.most_common(_SHOWN)]
            more = f", and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else ""
            lines.append(f"{excerpt_of(name)}: {listing(shown) if not more else ', '.join(shown) + more}.")
            if most >= _DOMINANT * total:
                severity = Severity.MEDIUM
                lines.append(f"{excerpt_of(value)} is {percent(most / total)} of {excerpt_of(name)}.")
            elif rare and severity is Severity.NONE:
                severity = Severity.LOW
        figures: dict[str, Any] = {
            "columns": {
                name: {excerpt_of(value): count for value, count in counts.most_common()}
                for name, counts in usable.items()
            }
        }
        return AuditFinding(
            check,
            title,
            severity,
            " ".join(lines),
            rare_in_all,
            sum(map(len, usable.values())),
            "categories",
            f"Categories with fewer than {_FEWEST} rows, or {percent(_RARE)}, are hardly learned and cannot be "
            "measured: collect more of them, and evaluate each one."
            if severity is not Severity.NONE
            else "",
            figures=figures,
        )


def _is_category(name: str) -> bool:
    return plain_name(name) in _COLUMNS
