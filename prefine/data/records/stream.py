"""Sources -> clean records, with every row accounted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, Self

from prefine.data.reading.quarantine import Quarantine, counted_reason, excerpt
from prefine.data.reading.rows import Problem, RowError, Unwritable, printable
from prefine.data.reading.sources import Part, Row, locate, read_part
from prefine.data.records.column_names import ColumnNames
from prefine.data.records.convert import R, without_unwritable
from prefine.data.records.kinds import name_of_kind
from prefine.data.records.layouts.shape import Shape
from prefine.data.records.layouts.table import shape_of
from prefine.data.records.missing_words import missing_word
from prefine.data.records.row_flags import unread_votes
from prefine.data.records.row_readings import Reading, in_trees, read_row
from prefine.data.records.selection import DuplicateFilter, Place
from prefine.data.records.unread_columns import answers_unread, kind_in, unknown_columns
from prefine.errors import DataError
from prefine.records import Demonstration, Preference
from prefine.row_rules import AS_WRITTEN, RowRules
from prefine.text_form import AS_FOUND, TextForm

_ROWS_BEFORE_GIVING_UP = 1_000
_MOST_COLUMNS_SHOWN = 1_000
_MISSING_SHOWN = 20
_REPEATS = "repeats an earlier row"
_NO_FORMAT = Problem("columns", "fit no known format")


@dataclass
class ReadCounts:
    """Counts of rows and records. Always: rows_in = kept + quarantined + left_out, and records = found - duplicates.

    Attributes:
        rows_in: rows read, without blank lines.
        kept: rows that are used. A row may give several records; a message of a tree that is only context gives none.
        reasons: quarantined rows by reason.
        left_out_reasons: by reason, valid rows without a record of this kind, such as a thumb down when answers are
            imitated.
        found: records in the kept rows.
        duplicates: records with the same content as an earlier one; dropped.
        duplicate_ids: records with the id of an earlier record but other content; kept.
        contradictions: records that contradict an earlier one; kept.
        scored_pairs: pairs with two scores and no margin of their own.
        missing_words: records with a turn or answer that means a missing value (#REF!, N/A), by that text; kept.
        missing_at: where the first of them are, as file:line.
        read_as: encodings and delimiters that were detected, with the files' names.
        columns_left_out: columns that are not read, by name, with the rows whose value JSON cannot represent (bytes,
            NaN).
        answers_unread: columns that look like answers but are in no format, by name, with their rows.
        votes_unread: the same for columns of demonstrations that look like votes.
        votes_down_unread: of these rows, those with a vote down; they are quarantined.
    """

    rows_in: int = 0
    kept: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    left_out_reasons: Counter[str] = field(default_factory=Counter)
    found: int = 0
    duplicates: int = 0
    duplicate_ids: int = 0
    contradictions: int = 0
    scored_pairs: int = 0
    columns_left_out: Counter[str] = field(default_factory=Counter)
    answers_unread: Counter[str] = field(default_factory=Counter)
    votes_unread: Counter[str] = field(default_factory=Counter)
    votes_down_unread: Counter[str] = field(default_factory=Counter)
    missing_words: Counter[str] = field(default_factory=Counter)
    missing_at: list[str] = field(default_factory=list)
    read_as: dict[str, list[str]] = field(default_factory=dict)

    @property
    def quarantined(self) -> int:
        """Quarantined rows."""
        return self.reasons.total()

    @property
    def left_out(self) -> int:
        """Valid rows without a record of this kind."""
        return self.left_out_reasons.total()

    @property
    def unused(self) -> Counter[str]:
        """What of the source is not among the records, by reason: rows, and records that repeat an earlier one."""
        found = self.reasons + self.left_out_reasons
        return found + Counter({_REPEATS: self.duplicates})

    @property
    def records(self) -> int:
        """Records without duplicates."""
        return self.found - self.duplicates

    def as_dict(self) -> dict[str, Any]:
        """All counts, for a manifest."""
        return {
            "rows_in": self.rows_in,
            "kept": self.kept,
            "quarantined": self.quarantined,
            "reasons": dict(self.reasons.most_common()),
            "left_out": self.left_out,
            "left_out_reasons": dict(self.left_out_reasons.most_common()),
            "duplicates": self.duplicates,
            "records": self.records,
            "duplicate_ids": self.duplicate_ids,
            "contradictions": self.contradictions,
            "scored_pairs": self.scored_pairs,
            "columns_left_out": dict(self.columns_left_out.most_common()),
            "answers_unread": dict(self.answers_unread.most_common()),
            "votes_unread": dict(self.votes_unread.most_common()),
            "votes_down_unread": dict(self.votes_down_unread.most_common()),
            "missing_words": dict(self.missing_words.most_common()),
            "missing_at": list(self.missing_at),
            "read_as": {said: {"first": names[0], "files": len(names)} for said, names in self.read_as.items()},
        }


def remarks(counts: Mapping[str, Any]) -> list[str]:
    """Sentences for the user on columns that were not used.

    Args:
        counts: from ReadCounts.as_dict, perhaps of an earlier release.
    """
    told = []
    for said, where in counts.get("read_as", {}).items():
        more = f" and {where['files'] - 1} more" if where["files"] > 1 else ""
        told.append(f"{printable(where['first'])}{more}: {said}")
    if rows := counts.get("left_out"):
        reasons = "; ".join(f"{reason} ({number})" for reason, number in list(counts["left_out_reasons"].items())[:5])
        told.append(f"{rows} valid rows are left out: {reasons}")
    if unread := counts.get("answers_unread"):
        names = ", ".join(f"{printable(str(name)[:40])} ({rows})" for name, rows in list(unread.items())[:5])
        told.append(
            f"columns that look like answers are not read (rows in brackets): {names}; name them with data.columns "
            "(--column)"
        )
    if votes := counts.get("votes_unread"):
        names = ", ".join(f"{printable(str(name)[:40])} ({rows})" for name, rows in list(votes.items())[:5])
        told.append(
            f"warning: columns that look like votes are not read (rows in brackets): {names}; data.columns (--column) "
            "says which is the label"
        )
    if scored := counts.get("scored_pairs"):
        told.append(
            f"{scored} pairs have scores; their differences are used as margins only with reward.margins: scores"
        )
    if left_out := counts.get("columns_left_out"):
        names = ", ".join(f"{printable(str(name)[:40])} ({rows})" for name, rows in list(left_out.items())[:5])
        told.append(f"columns whose values JSON cannot represent (bytes, NaN) are left out (rows in brackets): {names}")
    if words := counts.get("missing_words"):
        total = sum(words.values())
        named = ", ".join(f"{printable(word)!r} ({rows})" for word, rows in list(words.items())[:5])
        places = ", ".join(printable(place) for place in counts["missing_at"])
        more = ", …" if total > len(counts["missing_at"]) else ""
        told.append(
            f"warning: {total} records have a turn or an answer that means a missing value, {named}; they are kept: "
            f"remove the rows unless the text is intended ({places}{more})"
        )
    return told


class RecordStream(Generic[R]):
    """An iterator over records.

    Attributes:
        counts: always up to date; final at the end of the iterator.
        place: file and line of the last record.
        row: the row of that record, as it was read: its columns may hold Unwritable.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        kind: type[R],
        *,
        split: str,
        quarantine: Quarantine,
        deduplicate: bool,
        rules: RowRules,
    ) -> None:
        self.counts = ReadCounts()
        self.place = ("", 0)
        self.row: dict[str, Any] = {}
        self._set_aside_last: Place | None = None
        self._parts = parts
        self._kind = kind
        self._split = split
        self._rules = rules
        self._names = ColumnNames(rules.columns)
        self._quarantine = quarantine
        self._filter = DuplicateFilter() if deduplicate else None
        self._records = self._all_records()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> R:
        return next(self._records)

    def set_aside(self, record: R, place: Place, problem: Problem) -> None:
        """Quarantine a record that was returned but cannot be used.

        The first of several records of a row counts the row as quarantined.
        """
        self.counts.found -= 1
        if place != self._set_aside_last:
            self._set_aside_last = place
            self.counts.kept -= 1
            self._set_aside(*place, problem, record.model_dump(mode="json"))

    def _all_records(self) -> Iterator[R]:
        for part in self._parts:
            yield from self._part_records(part)
        self._names.require_seen(self._name)
        if self.counts.kept == 0:
            raise _nothing_kept(self._name, self._kind, self.counts, self._quarantine.path)

    @property
    def _name(self) -> str:
        return ", ".join(part.name for part in self._parts)

    def _part_records(self, part: Part) -> Iterator[R]:
        columns = _Columns(part.name, self._kind, self._names)
        for reading in in_trees(self._readings(part, columns), self._kind, self._rules):
            if columns.any_known and columns.waiting:
                self._set_waiting_aside(columns)
            if reading.shape_is_known:
                yield from self._records_of(reading)
        columns.require_known()

    def _readings(self, part: Part, columns: _Columns) -> Iterator[Reading[R]]:
        note, wanted = partial(self._note, part), name_of_kind(self._kind)
        for row in read_part(part, split=self._split, note=note, wanted=wanted):
            self.counts.rows_in += 1
            try:
                yield self._reading(row, columns, is_table=part.form in ("csv", "tsv"))
            except RowError as error:
                yield Reading(row, problem=error.problem)

    def _reading(self, row: Row, columns: _Columns, *, is_table: bool) -> Reading[R]:
        if row.left_out is not None:
            return Reading(row, left_out=row.left_out)
        if row.value is None or row.problem is not None:
            if row.problem is None:
                raise TypeError("a row has neither a value nor a problem")
            return Reading(row, problem=row.problem)
        value = self._names.applied(row.value, is_table=is_table)
        shape = columns.shape(value, row.value)
        if shape is None:
            columns.waiting.append((row.file, row.line, excerpt(row.value)))
            return Reading(row, shape_is_known=False)
        if any(isinstance(item, Unwritable) for item in value.values()):
            value, left_out = without_unwritable(value, shape)
            self.counts.columns_left_out.update(left_out)
        self.counts.answers_unread.update(answers_unread(value, self._kind, shape))
        if self._kind is Demonstration:
            votes = unread_votes(value, shape.taken(value))
            self.counts.votes_unread.update(list(votes))
            self.counts.votes_down_unread.update(name for name, up in votes.items() if not up)
        return read_row(row, value, self._kind, self._rules, shape)

    def _records_of(self, reading: Reading[R]) -> Iterator[R]:
        """Count a row, and yield its records."""
        row = reading.row
        if reading.problem is not None:
            self._set_aside(row.file, row.line, reading.problem, row.raw if row.value is None else row.value)
        elif reading.left_out is not None:
            self.counts.left_out_reasons[counted_reason(reading.left_out)] += 1
        else:
            self.counts.kept += 1
        for record in reading.records:
            self.counts.found += 1
            self._look_at(record, row)
            if self._filter is None or not self._is_duplicate(self._filter, record):
                self.place, self.row = (row.file, row.line), row.value or {}
                yield record

    def _look_at(self, record: R, row: Row) -> None:
        if isinstance(record, Preference) and record.margin is None and record.score_difference is not None:
            self.counts.scored_pairs += 1
        if (word := missing_word(record)) is not None:
            self.counts.missing_words[word] += 1
            if len(self.counts.missing_at) < _MISSING_SHOWN:
                self.counts.missing_at.append(f"{row.file}:{row.line}")

    def _note(self, part: Part, said: str) -> None:
        self.counts.read_as.setdefault(said, []).append(part.name)

    def _set_aside(self, file: str, line: int, problem: Problem, row: str | dict[str, Any]) -> None:
        self.counts.reasons[self._quarantine.add(file, line, problem, row)] += 1

    def _set_waiting_aside(self, columns: _Columns) -> None:
        for file, line, row in columns.waiting:
            self._set_aside(file, line, _NO_FORMAT, row)
        columns.waiting.clear()

    def _is_duplicate(self, seen: DuplicateFilter, record: R) -> bool:
        duplicate = seen.is_duplicate(record)
        self.counts.duplicates = seen.duplicates
        self.counts.duplicate_ids = seen.duplicate_ids
        self.counts.contradictions = seen.contradictions
        return duplicate


def _nothing_kept(name: str, kind: type[Any], counts: ReadCounts, where: Path | None) -> DataError:
    reasons = counts.reasons + counts.left_out_reasons
    told = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
    return DataError(
        f"{name}: none of {counts.rows_in} rows is a {kind.__name__.lower()}: {told}",
        f"See the rows in {where}."
        if where and counts.quarantined
        else "Correct the rows; docs/data.md shows one of each format.",
    )


class _Columns:
    """The shapes of one part's rows.

    Attributes:
        any_known: whether any row so far had a known shape.
        waiting: rows without a shape. Until one has a shape, the whole file may be the wrong one, and then these rows
            are not quarantined.
    """

    def __init__(self, name: str, kind: type[Any], names: ColumnNames) -> None:
        self.any_known = False
        self.waiting: list[tuple[str, int, str]] = []
        self._name = name
        self._kind = kind
        self._names = names
        self._found: dict[str, None] = {}
        self._like: Counter[type[Any]] = Counter()

    def shape(self, value: dict[str, Any], as_written: Iterable[str]) -> Shape | None:
        """The shape of a row, if there is one.

        Args:
            value: the row under prefine's names.
            as_written: the names of its columns in the file.

        Raises:
            DataError: neither this row nor a thousand rows before it have a known shape.
        """
        shape = shape_of(value, self._kind)
        if shape is not None:
            self.any_known = True
        elif not self.any_known:
            if len(self._found) < _MOST_COLUMNS_SHOWN:
                self._found.update(dict.fromkeys(as_written))
            if (like := kind_in(value)) is not None:
                self._like[like] += 1
            if len(self.waiting) >= _ROWS_BEFORE_GIVING_UP:
                self.require_known()
        return shape

    def require_known(self) -> None:
        """Raise DataError if rows had columns but none had a known shape."""
        if self.any_known or not self.waiting:
            return
        self._names.require_seen(self._name)
        like = self._like.most_common(1)[0][0] if self._like else None
        raise unknown_columns(self._name, list(self._found), self._kind, like)


def read_records(
    sources: str | Sequence[str],
    kind: type[R],
    *,
    quarantine: Quarantine,
    split: str = "train",
    deduplicate: bool = True,
    text: TextForm = AS_FOUND,
    rules: RowRules = AS_WRITTEN,
) -> RecordStream[R]:
    """Read sources as records of one kind, in order and in bounded memory.

    Args:
        sources: one source or several; duplicates are found across all of them.
        kind: Preference, Vote, Demonstration or Prompt.
        quarantine: takes the rows that are not valid; its owner closes it.
        split: of a Hugging Face dataset; files are read completely.
        deduplicate: yield only the first of records with the same content.
        text: delimiter and encoding of text files.
        rules: names of columns, and which pairs ranked answers give.

    Raises:
        DataError: at once if a source cannot be found or is the quarantine file, or if the rules name a column that no
            format has; while iterating if a source cannot be read, if none of its rows has columns that fit, or if at
            the end no row was kept or no row has a column that the rules name.
    """
    names = [sources] if isinstance(sources, str) else list(sources)
    if not names:
        raise DataError("no data source is given", "Name a file, a folder or a dataset.")
    parts = [part for name in names for part in locate(name, text)]
    written = quarantine.path and Path(quarantine.path).resolve()
    for part in parts:
        if part.path is not None and part.path.resolve() == written:
            raise DataError(f"{part.name}: is the quarantine file of this run", "Read another file.")
    return RecordStream(parts, kind, split=split, quarantine=quarantine, deduplicate=deduplicate, rules=rules)
