"""What a source has that is not read: columns that look like answers or votes, and rows of other kinds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from prefine.data.audit.entries import excerpt_of
from prefine.data.audit.findings import AuditFinding, Severity, by_share
from prefine.data.reading.rows import RowError
from prefine.data.reading.sources import locate, read_part
from prefine.data.records.column_names import ColumnNames
from prefine.data.records.kinds import KINDS
from prefine.data.records.layouts.trees import is_flat_message
from prefine.data.records.unread_columns import kind_in, proposed_columns
from prefine.formatting import listing, plural
from prefine.row_rules import RowRules
from prefine.text_form import TextForm

UNKNOWN = "unknown"
_NAMES: dict[type[Any] | None, str] = {kind: name for name, kind in KINDS.items()}
_MOST_COLUMNS = 1_000
_SHOWN = 5


@dataclass
class RowKinds:
    """What rows are by their columns.

    Attributes:
        rows: by kind, in the order of KINDS, and `unknown`.
        proposed: prefine's names for columns with names that other datasets use, with the columns. Empty if one has no
            such name, or if the user named columns: then the others have a meaning that is not known.
    """

    rows: dict[str, int]
    proposed: dict[str, str]


def row_kinds(
    sources: Sequence[str], kind: str, most: int | None, *, split: str, text: TextForm, rules: RowRules
) -> RowKinds:
    """What the first `most` rows of sources are by their columns; None: all rows.

    Args:
        sources: as `locate` takes them.
        kind: that the sources are read as. Messages of a tree are of this kind: what they are depends on the others.
        split, text, rules: see read_records.
    """
    names = ColumnNames(rules.columns)
    found: Counter[str] = Counter()
    columns: dict[str, None] = {}
    parts = [part for source in sources for part in locate(source, text)]
    rows = ((part, row) for part in parts for row in read_part(part, split=split))
    for part, row in islice(rows, most):
        meant = UNKNOWN
        if row.value is not None:
            if len(columns) < _MOST_COLUMNS:
                columns |= dict.fromkeys(row.value)
            with suppress(RowError):
                value = names.applied(row.value, is_table=part.form in ("csv", "tsv"))
                meant = kind if is_flat_message(value) else _NAMES.get(kind_in(value), UNKNOWN)
        found[meant] += 1
    rows_by_kind = {name: found[name] for name in (*KINDS, UNKNOWN) if found[name]}
    return RowKinds(rows_by_kind, {} if rules.columns else proposed_columns(columns))


def unread_findings(counts: Mapping[str, Any], kinds: RowKinds, kind: str, *, asked: bool) -> list[AuditFinding]:
    """The two findings.

    Args:
        counts: from ReadCounts.as_dict.
        kinds: of the rows.
        kind: that they were read as.
        asked: whether the user named that kind.
    """
    return [_columns(counts, kind, kinds.proposed), _kinds(kinds, kind, asked)]


def _columns(counts: Mapping[str, Any], kind: str, proposed: Mapping[str, str]) -> AuditFinding:
    answers, votes, rows = counts["answers_unread"], counts["votes_unread"], counts["rows_in"]
    down = counts["votes_down_unread"]
    most = max([0, *answers.values(), *votes.values()])
    severity = Severity.NONE
    if most and (kind == "prompts" or votes):  # without its answers or votes a row teaches nothing, or the wrong thing
        severity = Severity.HIGH
    elif most:  # a further column beside answers that are read may be of no use
        useful = _useful(proposed, answers, votes)
        severity = by_share(most, rows, medium=0.1, high=2) if useful else Severity.LOW
    return AuditFinding(
        "unread_columns",
        "Columns that are not read",
        severity,
        columns_sentence(answers, votes, down, kind) or "No column that looks like answers or votes is left unread.",
        most,
        rows,
        "rows",
        naming(answers, votes, proposed, kind) if most else "",
        figures={"answers": dict(answers), "votes": dict(votes), "votes_down": dict(down)},
    )


def columns_sentence(answers: Mapping[str, int], votes: Mapping[str, int], down: Mapping[str, int], kind: str) -> str:
    """Which columns look like answers or votes and are not read; empty if there are none.

    Args:
        answers, votes: the columns with their rows.
        down: the columns of votes with the rows whose vote is down: demonstrations cannot be read from these.
        kind: that the rows were read as.
    """
    says = []
    if answers:
        says.append(f"{_named('answers', answers)}{' Rows are read as prompts alone.' if kind == 'prompts' else ''}")
    if votes:
        # A row may have several such columns, so their rows do not add up.
        least = "at least " if len(down) > 1 else ""
        says.append(
            f"{_named('votes', votes)} Only answers that were voted up are imitated; "
            f"{least}{plural(max(down.values(), default=0), 'row')} with a vote down cannot be used."
        )
    return " ".join(says)


def _named(what: str, columns: Mapping[str, int]) -> str:
    """The columns with their rows, the most frequent first."""
    several = len(columns) > 1
    shown = sorted(columns.items(), key=lambda item: -item[1])[:_SHOWN]
    names = listing([f"{excerpt_of(name)} ({plural(rows, 'row')})" for name, rows in shown])
    more = f" and {len(columns) - _SHOWN} more" if len(columns) > _SHOWN else ""
    return (
        f"{'Columns' if several else 'A column'} that {'look' if several else 'looks'} like {what} "
        f"{'are' if several else 'is'} not read: {names}{more}."
    )


def naming(answers: Mapping[str, int], votes: Mapping[str, int], proposed: Mapping[str, str], kind: str) -> str:
    """What to do about columns that are not read.

    Args:
        answers, votes: the columns with their rows.
        proposed: prefine's names for columns; of use if one of these is among them.
        kind: that the rows were read as.
    """
    useful = _useful(proposed, answers, votes)
    ignore = "" if useful or votes or kind == "prompts" else "Nothing needs to be done if they are not wanted. "
    return f"{ignore}Name them: {_column_options(useful)}"


def _useful(proposed: Mapping[str, str], answers: Mapping[str, int], votes: Mapping[str, int]) -> Mapping[str, str]:
    return proposed if {*proposed.values()} & {*answers, *votes} else {}


def _column_options(proposed: Mapping[str, str]) -> str:
    """How a user names columns, as a sentence. Of nothing that is proposed the general form."""
    if not proposed:
        return "--column NAME=COLUMN, data.columns in a recipe; docs/data.md has the names of each format."
    options = " ".join(f"--column {name}={_quoted(column)}" for name, column in proposed.items())
    fields = ", ".join(f"{name}: {excerpt_of(column)}" for name, column in proposed.items())
    return f"{options}, or data.columns: {{{fields}}} in a recipe."


def _quoted(column: str) -> str:
    shown = excerpt_of(column)
    return f"'{shown}'" if any(each.isspace() for each in shown) else shown


def _kinds(kinds: RowKinds, kind: str, asked: bool) -> AuditFinding:
    count = sum(rows for name, rows in kinds.rows.items() if name not in (kind, UNKNOWN))
    of = sum(kinds.rows.values())
    return AuditFinding(
        "other_kinds",
        "Rows of other kinds",
        Severity.LOW if asked and count else by_share(count, of, medium=0.01, high=0.1),
        kinds_sentence(kinds.rows, kind) or f"No row is of another kind than {kind}, by its columns.",
        count,
        of,
        "rows",
        "Write each kind into a file of its own: a stage reads one kind. --kind audits another one." if count else "",
        figures={"rows_by_kind": dict(kinds.rows)},
    )


def kinds_sentence(rows: Mapping[str, int], kind: str) -> str:
    """What the rows are by their columns, if not all are of the kind that they are read as; else empty."""
    others = [name for name in rows if name not in (kind, UNKNOWN)]
    if not others:
        return ""
    listed = listing([f"{number:,} {name}" for name, number in rows.items()])
    return f"By their columns, the rows are {listed}. They are read as {kind}: {listing(others)} do not count as such."
