"""Facts about data in a few numbers, for advice on which method fits it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prefine.data.audit.run import Audit, AuditSettings, audit_sources
from prefine.row_rules import AS_WRITTEN, RowRules
from prefine.text_form import AS_FOUND, TextForm

MOST_RECORDS = 20_000
"""Records that facts are taken from."""


@dataclass(frozen=True)
class DataFacts:
    """Facts about one or more sources of one kind.

    Attributes:
        kind: what most rows are: preferences, votes, demonstrations or prompts.
        rows, records, quarantined: as read. Without `complete` only the first records were read, and all
            facts are theirs.
        rows_by_kind: rows by what their columns say they are; "unknown" too.
        answers_unread, votes_unread: columns that look like answers or votes and are not read, with their rows.
        votes_down_unread: of these votes, the rows with a vote down.
        columns_proposed: prefine's names for such columns, with the columns; empty if their names say too little.
        duplicates: records that repeat an earlier one.
        contradictions: records that another one contradicts. Records that repeat an earlier one do not count.
        ties: pairs that are undecided.
        thumbs_up: votes up; None if the rows are not votes.
        length_bias: share of pairs of unequal length whose chosen answer is the longer one; of votes the probability
            that an answer voted up is longer than one voted down. None with too few.
        shallow_accuracy: accuracy of single words on rows that were not learned, 0.5 is chance; None with too few rows.
        noise_at_most: upper limit of the share of labels that are wrong at random; None with too few rows.
        agreement: share of pairs of votes on the same answers that agree; None with too few of them.
        agreement_at_most: the upper end of its 95 % interval.
        annotators: that columns name.
        median_tokens, p95_tokens, longest_tokens: of prompt and longest answer, estimated from characters.
        longest_prompt_tokens: of a prompt alone, likewise.
        languages: share by ISO 639 code, in a sample.
    """

    kind: str
    rows: int
    rows_by_kind: dict[str, int]
    answers_unread: dict[str, int]
    votes_unread: dict[str, int]
    votes_down_unread: dict[str, int]
    columns_proposed: dict[str, str]
    complete: bool
    records: int
    quarantined: int
    duplicates: int
    contradictions: int
    ties: int
    thumbs_up: int | None
    length_bias: float | None
    shallow_accuracy: float | None
    noise_at_most: float | None
    agreement: float | None
    agreement_at_most: float | None
    annotators: int
    median_tokens: int
    p95_tokens: int
    longest_tokens: int
    longest_prompt_tokens: int
    languages: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)


def data_facts(
    sources: Sequence[str],
    *,
    kind: str | None = None,
    split: str = "train",
    text: TextForm = AS_FOUND,
    rules: RowRules = AS_WRITTEN,
    most_records: int = MOST_RECORDS,
) -> DataFacts:
    """The facts about sources, from at most `most_records` records.

    Args:
        sources: files, folders, dataset ids or sample:….
        kind: a name in KINDS; None looks at the columns.
        split, text, rules: see read_records.
        most_records: to read.

    Raises:
        DataError: a source cannot be read, or has no usable row.
    """
    settings = AuditSettings(sources, kind, split=split, text=text, rules=rules)
    return facts_of(audit_sources(settings, most_records=most_records, find_near=False))


def facts_of(audit: Audit) -> DataFacts:
    """The facts in an audit."""
    checks, lengths = audit.checks, audit.checks.tokens.lengths
    return DataFacts(
        kind=audit.kind,
        rows=audit.rows,
        rows_by_kind=audit.kinds.rows,
        answers_unread=audit.counts["answers_unread"],
        votes_unread=audit.counts["votes_unread"],
        votes_down_unread=audit.counts["votes_down_unread"],
        columns_proposed=audit.kinds.proposed,
        complete=audit.complete,
        records=audit.records,
        quarantined=int(audit.counts["quarantined"]),
        duplicates=checks.judgements.duplicates,
        contradictions=checks.judgements.contradictions,
        ties=checks.balance.ties,
        thumbs_up=checks.balance.thumbs_up if checks.balance.votes else None,
        length_bias=checks.length_bias.share,
        shallow_accuracy=checks.cues.shallow_accuracy,
        noise_at_most=checks.cues.noise_at_most,
        agreement=checks.disagreement.agreement,
        agreement_at_most=checks.disagreement.agreement_at_most,
        annotators=checks.disagreement.annotators,
        median_tokens=round(lengths.median) if lengths else 0,
        p95_tokens=lengths.at_95_percent if lengths else 0,
        longest_tokens=lengths.maximum if lengths else 0,
        longest_prompt_tokens=checks.tokens.longest_prompt,
        languages=checks.languages.shares,
    )
