"""One audit: every row of the sources is read once, and every check sees every record."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from prefine.data.audit.balance import Balance
from prefine.data.audit.categories import Categories
from prefine.data.audit.copies import Copies
from prefine.data.audit.cues import Cues
from prefine.data.audit.disagreement import Disagreement
from prefine.data.audit.drops import Drops
from prefine.data.audit.entries import Entry, at, entry_of, shown
from prefine.data.audit.findings import MOST_EXAMPLES, AuditExample, AuditFinding, Severity
from prefine.data.audit.judgements import ContradictionRule, JudgedItems
from prefine.data.audit.languages import Languages
from prefine.data.audit.leaks import Leaks
from prefine.data.audit.length_bias import LengthCheck
from prefine.data.audit.near import NearDuplicates
from prefine.data.audit.personal_data import PersonalData
from prefine.data.audit.reading import AuditedQuarantine
from prefine.data.audit.token_lengths import TokenCount, TokenLengths
from prefine.data.audit.unread import RowKinds, row_kinds, unread_findings
from prefine.data.reading.quarantine import Quarantine
from prefine.data.reading.source_names import source_names
from prefine.data.reading.sources import locate
from prefine.data.records.kinds import KINDS, kind_of_sources
from prefine.data.records.selection import Place, normalised
from prefine.data.records.stream import RecordStream, read_records
from prefine.errors import DataError
from prefine.row_rules import AS_WRITTEN, RowRules
from prefine.text_form import AS_FOUND, TextForm

CONTEXT = 1024
"""The default of data.max_length_tokens."""
_ROWS_BETWEEN_PROGRESS = 200
# White space and punctuation that two nearly equal answers may differ in, besides a tenth of their length.
_MOST_IGNORED = 20
_RANK = {severity: rank for rank, severity in enumerate(Severity)}


@dataclass(frozen=True)
class AuditSettings:
    """What an audit reads and how.

    Attributes:
        sources: files, folders, dataset ids or sample:….
        kind: a name in KINDS; None looks at the columns.
        heldout: sources of held-out data, for leaks.
        split, text, rules: see read_records; of the held-out data too.
        context: the most tokens of a prompt and an answer together.
        count, model: see TokenLengths.
        contradictions, near: what a cleaned copy leaves out besides exact duplicates, equal answers and leaks.
    """

    sources: Sequence[str]
    kind: str | None = None
    heldout: Sequence[str] = ()
    split: str = "train"
    text: TextForm = AS_FOUND
    rules: RowRules = AS_WRITTEN
    context: int = CONTEXT
    count: TokenCount | None = None
    model: str = ""
    contradictions: ContradictionRule = "keep"
    near: bool = False


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
        kind: what the rows were read as.
        rows, records: rows read, and records in them.
        complete: whether all rows were read.
        counts: see ReadCounts.
        kinds: what the rows are by their columns.
        findings: of all checks, the most serious first.
        checks: what found them, for further figures.
        drops: rows that a cleaned copy leaves out.
        seconds: that it took.
    """

    settings: AuditSettings
    kind: str
    rows: int
    records: int
    complete: bool
    counts: dict[str, Any]
    kinds: RowKinds
    findings: list[AuditFinding]
    checks: AuditChecks
    drops: Drops
    seconds: float


@dataclass
class AuditChecks:
    """All checks of one audit."""

    quarantine: AuditedQuarantine
    copies: Copies
    judgements: JudgedItems
    disagreement: Disagreement
    near: NearDuplicates | None
    leaks: Leaks
    length_bias: LengthCheck
    cues: Cues
    languages: Languages
    personal: PersonalData
    tokens: TokenLengths
    balance: Balance
    categories: Categories
    nearly_equal: int = 0
    nearly_equal_examples: list[AuditExample] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        """Show a record to every check."""
        judged_before = self.judgements.add(entry)
        if self.near is not None and not judged_before:
            self.near.add(entry)
        if len(entry.answers) == 2 and _nearly_equal(*entry.answers):
            self.nearly_equal += 1
            if len(self.nearly_equal_examples) < MOST_EXAMPLES:
                self.nearly_equal_examples.append(AuditExample([at(entry.place)], shown(entry), "nearly the same"))
        for check in (self.leaks, self.length_bias, self.cues, self.languages, self.tokens):
            check.add(entry)
        self.balance.add(entry)
        self.categories.add(entry)
        self.personal.add(entry)
        self.disagreement.add(entry)

    def findings(self, stream: RecordStream[Any], records: int, kind: str) -> list[AuditFinding]:
        """Of all records; also decides which copies are left out."""
        found = [
            *self.judgements.findings(),
            self.disagreement.finding(),
            *(self.near.findings(records) if self.near is not None else []),
            *self.leaks.findings(),
            self.length_bias.finding(),
            *self.cues.findings(),
            self.languages.finding(),
            self.personal.finding(),
            self.tokens.finding(),
            *self.balance.findings(),
            self.categories.finding(),
            *self.quarantine.findings(stream.counts, self.nearly_equal_examples, self.nearly_equal),
        ]
        self.copies.decide()  # the checks above decided on contradictions and leaks
        useless = _USELESS.get(kind, ())
        return [each for each in found if each.check not in useless]


def _nearly_equal(first: str, second: str) -> bool:
    """Whether two answers differ only as `normalised` texts do not; most differ in length already."""
    return abs(len(first) - len(second)) <= _MOST_IGNORED + len(first) // 10 and normalised(first) == normalised(second)


_OF_JUDGEMENTS = ("contradictions", "near_contradictions", "disagreement", "length_bias", "shallow_cues", "label_noise")
# Checks that say nothing about a kind of record.
_USELESS = {
    "votes": ("equal_answers",),
    "demonstrations": ("equal_answers", *_OF_JUDGEMENTS),
    "prompts": ("equal_answers", *_OF_JUDGEMENTS),
}


def audit_sources(
    settings: AuditSettings,
    *,
    most_records: int | None = None,
    find_near: bool = True,
    progress: Callable[[int], None] = lambda rows: None,
) -> Audit:
    """Read the sources and make every check.

    Args:
        settings: see AuditSettings.
        most_records: stop after that many records; None reads everything.
        find_near: whether to look for near duplicates.
        progress: called with the number of rows read so far.

    Raises:
        DataError: a source cannot be read, or has no usable row.
    """
    start = time.perf_counter()
    names = source_names(list(settings.sources))
    _require_different(names)
    kind = settings.kind or kind_of_sources(names, split=settings.split, text=settings.text, rules=settings.rules)
    drops, places = Drops(), list[Place]()
    checks = _checks(settings, drops, places, find_near)
    if settings.heldout:
        for entry in _heldout_entries(settings, kind):
            checks.leaks.hold_out(entry)
    stream = _read(settings, names, kind, checks.quarantine)
    records = 0
    for record in islice(stream, most_records):
        entry = entry_of(records, stream.place, record, stream.row)
        places.append(entry.place)
        drops.read(entry.place, entry.row)
        checks.add(entry)
        records += 1
        if records % _ROWS_BETWEEN_PROGRESS == 0:
            progress(stream.counts.rows_in)
    progress(stream.counts.rows_in)
    rows, counts, findings = stream.counts.rows_in, stream.counts.as_dict(), checks.findings(stream, records, kind)
    complete = records != most_records or next(stream, None) is None
    most = None if complete else rows
    kinds = row_kinds(names, kind, most, split=settings.split, text=settings.text, rules=settings.rules)
    findings += unread_findings(counts, kinds, kind, asked=settings.kind is not None)
    return Audit(
        settings=settings,
        kind=kind,
        rows=rows,
        records=records,
        complete=complete,
        counts=counts,
        kinds=kinds,
        findings=sorted(findings, key=lambda finding: _RANK[finding.severity]),
        checks=checks,
        drops=drops,
        seconds=time.perf_counter() - start,
    )


def _require_different(names: Sequence[str]) -> None:
    """Raise DataError if a file is read twice: each of its rows would repeat itself."""
    paths = [part.path.resolve() for name in names for part in locate(name) if part.path is not None]
    for path in paths:
        if paths.count(path) > 1:
            raise DataError(f"{path} is named twice", "Name each file once.")


def _checks(settings: AuditSettings, drops: Drops, places: Sequence[Place], find_near: bool) -> AuditChecks:
    copies = Copies(places, drops)
    judgements = JudgedItems(places, drops, copies, settings.contradictions)
    return AuditChecks(
        quarantine=AuditedQuarantine(drops),
        copies=copies,
        judgements=judgements,
        disagreement=Disagreement(judgements),
        near=NearDuplicates(places, copies if settings.near else None) if find_near else None,
        leaks=Leaks(drops, near_too=settings.near),
        length_bias=LengthCheck(),
        cues=Cues(),
        languages=Languages(),
        personal=PersonalData(),
        tokens=TokenLengths(settings.context, settings.count, settings.model),
        balance=Balance(),
        categories=Categories(),
    )


def _read(settings: AuditSettings, names: Sequence[str], kind: str, quarantine: Quarantine) -> RecordStream[Any]:
    return read_records(
        names,
        KINDS[kind],
        quarantine=quarantine,
        split=settings.split,
        deduplicate=False,
        text=settings.text,
        rules=settings.rules,
    )


def _heldout_entries(settings: AuditSettings, kind: str) -> Iterator[Entry]:
    """The records of the held-out data, by their own kind: only their prompts count."""
    names = source_names(list(settings.heldout))
    own = kind_of_sources(names, split=settings.split, text=settings.text, rules=settings.rules)
    stream = _read(settings, names, own if settings.kind is None else kind, Quarantine(None))
    for number, record in enumerate(stream):
        yield entry_of(number, stream.place, record, stream.row)
