"""The finding on personal data and secrets in all texts of a source."""

from __future__ import annotations

from collections import Counter

from prefine.data.audit.entries import Entry, at
from prefine.data.audit.findings import MOST_EXAMPLES, AuditExample, AuditFinding, Severity
from prefine.data.audit.personal import KINDS_OF_DATA, personal_matches
from prefine.formatting import listing, plural


class PersonalData:
    """Counts records with each kind of personal data; shows masked forms only."""

    def __init__(self) -> None:
        self._records = self._with_any = 0
        self._matches: Counter[str] = Counter()
        self._in_records: Counter[str] = Counter()
        self._examples: dict[str, list[AuditExample]] = {kind: [] for kind in KINDS_OF_DATA}

    def add(self, entry: Entry) -> None:
        """Take a record."""
        self._records += 1
        found = personal_matches(entry.text)
        self._with_any += bool(found)
        for kind in {match.kind for match in found}:
            self._in_records[kind] += 1
            if len(self._examples[kind]) < MOST_EXAMPLES:
                hint = next(match.hint for match in found if match.kind == kind)
                self._examples[kind].append(AuditExample([at(entry.place)], note=hint))
        self._matches.update(match.kind for match in found)

    def finding(self) -> AuditFinding:
        """Of all records."""
        parts = [
            f"{plural(self._matches[kind], about.title, about.several)} in {plural(self._in_records[kind], 'record')}"
            for kind, about in KINDS_OF_DATA.items()
            if self._matches[kind]
        ]
        severity = max(
            (_severity(kind) for kind in self._matches),
            key=(Severity.NONE, Severity.LOW, Severity.MEDIUM, Severity.HIGH).index,
            default=Severity.NONE,
        )
        return AuditFinding(
            "personal_data",
            "Personal data and secrets",
            severity,
            f"{listing(parts)}. Cards and IBANs are proven by their check digits; the others fit a pattern."
            if parts
            else "No card number, IBAN, key, e-mail address, phone number or public IP address was found.",
            self._with_any,
            self._records,
            "records",
            "A model can repeat what it was trained on: replace these by placeholders before training, and revoke keys."
            if parts
            else "",
            [example for kind in KINDS_OF_DATA for example in self._examples[kind]],
            {"matches": {kind: self._matches[kind] for kind in KINDS_OF_DATA}},
        )


def _severity(kind: str) -> Severity:
    if KINDS_OF_DATA[kind].secret:
        return Severity.HIGH
    return Severity.LOW if kind == "ip" else Severity.MEDIUM
