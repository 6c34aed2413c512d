"""What reading itself sets aside: rows that no stage could use, and pairs whose answers are the same text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefine.data.audit.drops import Drops, Why
from prefine.data.audit.entries import at
from prefine.data.audit.findings import MOST_EXAMPLES, AuditExample, AuditFinding, Severity, by_share
from prefine.data.reading.quarantine import Quarantine
from prefine.data.reading.rows import Problem
from prefine.data.records.layouts.pairs import EQUAL_ANSWERS
from prefine.data.records.selection import Place
from prefine.data.records.stream import ReadCounts
from prefine.formatting import plural

_REASONS_SHOWN = 8


class AuditedQuarantine(Quarantine):
    """Counts rows that cannot be used, with the places of some, and sets pairs of equal answers apart.

    Args:
        drops: takes pairs of equal answers.
    """

    def __init__(self, drops: Drops) -> None:
        super().__init__(None)
        self._drops = drops
        self._places: dict[str, list[Place]] = {}
        self.equal: list[Place] = []
        self.equal_answers = 0

    def add(self, file: str, line: int, problem: Problem, row: str | Mapping[str, Any]) -> str:
        """See Quarantine."""
        reason = super().add(file, line, problem, row)
        if problem == EQUAL_ANSWERS:
            self.equal_answers += 1
            if len(self.equal) < MOST_EXAMPLES:
                self.equal.append((file, line))
            self._drops.drop_row((file, line), Why.EQUAL_ANSWERS)
            return reason
        places = self._places.setdefault(reason, [])
        if len(places) < MOST_EXAMPLES:
            places.append((file, line))
        return reason

    def findings(self, counts: ReadCounts, near_equal: list[AuditExample], nearly: int) -> list[AuditFinding]:
        """Of all rows; `near_equal` are the first of `nearly` pairs that differ in case or spacing only."""
        return [self._equal(counts, near_equal, nearly), self._unread(counts)]

    def _equal(self, counts: ReadCounts, near_equal: list[AuditExample], nearly: int) -> AuditFinding:
        count = self.equal_answers + nearly
        says = []
        if self.equal_answers:
            says.append(f"{plural(self.equal_answers, 'pair has', 'pairs have')} the same text as chosen and rejected.")
        if nearly:
            differ = plural(nearly, "pair differs", "pairs differ")
            says.append(f"{differ} in case, spacing or end punctuation only.")
        return AuditFinding(
            "equal_answers",
            "Chosen = rejected",
            by_share(count, counts.rows_in, medium=0.005, high=0.05),
            " ".join(says) or "The two answers of every pair differ.",
            count,
            counts.rows_in,
            "rows",
            "They teach nothing. prefine's stages leave equal ones out; --fix removes the rows. Look for an export "
            "that wrote one answer twice."
            if count
            else "",
            [*(AuditExample([at(place)]) for place in self.equal), *near_equal][:MOST_EXAMPLES],
            {"equal": self.equal_answers, "nearly_equal": nearly},
        )

    def _unread(self, counts: ReadCounts) -> AuditFinding:
        reasons = {reason: rows for reason, rows in self.reasons.most_common() if reason in self._places}
        count = sum(reasons.values())
        words = sum(counts.missing_words.values())
        shown = [f"{reason} ({rows:,})" for reason, rows in list(reasons.items())[:_REASONS_SHOWN]]
        more = f"; and {len(reasons) - _REASONS_SHOWN} further reasons" if len(reasons) > _REASONS_SHOWN else ""
        says = (
            [f"{plural(count, 'row')} of {counts.rows_in:,} cannot be used: {'; '.join(shown)}{more}."] if count else []
        )
        if words:
            says.append(
                f"{plural(words, 'record has', 'records have')} a turn or an answer that means a missing value "
                f"({', '.join(f'{word} {rows}' for word, rows in counts.missing_words.most_common(3))})."
            )
        if counts.left_out:
            says.append(
                f"{plural(counts.left_out, 'row is', 'rows are')} valid, and left out: "
                f"{'; '.join(counts.left_out_reasons)}."
            )
        examples = [AuditExample([at(place)], note=reason) for reason in reasons for place in self._places[reason][:2]]
        examples += [AuditExample([place], note="means a missing value") for place in counts.missing_at[:2]]
        severity = by_share(count, counts.rows_in, medium=0.01, high=0.1)
        return AuditFinding(
            "quarantined",
            "Rows that cannot be used",
            Severity.LOW if severity is Severity.NONE and words else severity,
            " ".join(says) or "Every row can be used.",
            count,
            counts.rows_in,
            "rows",
            "prefine data check FILE --quarantine PATH writes them to a file, each with its field and reason."
            if count
            else "Remove them unless the text is intended."
            if words
            else "",
            examples[: 2 * MOST_EXAMPLES],
            {"reasons": reasons, "missing_words": dict(counts.missing_words), "left_out": counts.left_out},
        )
