"""Whether votes and pairs decide: thumbs up and down, and ties."""

from __future__ import annotations

from prefine.data.audit.entries import Entry, at, shown
from prefine.data.audit.findings import MOST_EXAMPLES, AuditExample, AuditFinding, Severity
from prefine.formatting import percent, plural
from prefine.records import Preference, Vote


class Balance:
    """Counts votes by their side, and ties of pairs.

    Attributes:
        ties: pairs that are undecided.
        votes, thumbs_up: all votes, and those that are up.
    """

    def __init__(self) -> None:
        self.ties = self.thumbs_up = self.votes = 0
        self._records = 0
        self._examples: dict[str, list[AuditExample]] = {"up": [], "down": [], "tie": []}

    def add(self, entry: Entry) -> None:
        """Take a record."""
        self._records += 1
        if isinstance(entry.record, Vote):
            self.votes += 1
            self.thumbs_up += entry.record.label
            self._note(entry, "up" if entry.record.label else "down")
        elif isinstance(entry.record, Preference) and entry.record.tie:
            self.ties += 1
            self._note(entry, "tie")

    def findings(self) -> list[AuditFinding]:
        """Of all records."""
        return [*([self._votes()] if self.votes else []), *([self._ties()] if self.ties else [])]

    def _note(self, entry: Entry, side: str) -> None:
        if len(self._examples[side]) < MOST_EXAMPLES:
            self._examples[side].append(AuditExample([at(entry.place)], shown(entry), side))

    def _votes(self) -> AuditFinding:
        down = self.votes - self.thumbs_up
        fewer = min(down, self.thumbs_up) / self.votes
        severity = Severity.HIGH if fewer < 0.02 else Severity.MEDIUM if fewer < 0.1 else Severity.NONE
        rarer = "down" if down < self.thumbs_up else "up"
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
            self._examples[rarer] if severity is not Severity.NONE else (),
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
            self._examples["tie"],
        )
