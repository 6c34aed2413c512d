"""Sources -> clean records, with every row accounted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Self

from prefine.data.column_names import with_known_names
from prefine.data.convert import SHAPES, R, Shape, convert, shape_of, without_unwritable
from prefine.data.missing_words import missing_word
from prefine.data.quarantine import Quarantine, excerpt
from prefine.data.reading import Part, Row, locate, read_part
from prefine.data.rows import Problem, RowError, Unwritable, printable
from prefine.data.selection import DuplicateFilter, Place
from prefine.errors import DataError
from prefine.records import Preference
from prefine.text_form import AS_FOUND, TextForm

_ROWS_BEFORE_GIVING_UP = 1_000
_MOST_COLUMN_SETS = 1_000
_MISSING_SHOWN = 20
_NO_FORMAT = Problem("columns", "fit no known format")


@dataclass
class ReadCounts:
    """What became of the rows. Always: rows_in = kept + quarantined, and records = kept - duplicates.

    Attributes:
        rows_in: rows read; blank lines are none.
        kept: rows that are valid records.
        reasons: quarantined rows by reason.
        duplicates: kept rows that said what an earlier one had said; not handed on.
        duplicate_ids: records whose id an earlier record with other content has; handed on.
        contradictions: records that say the opposite of an earlier one; handed on.
        scored_pairs: pairs with two scores and no margin of their own.
        missing_words: records with a turn or answer that stands for a missing value (#REF!, N/A), by that text; kept.
        missing_at: where the first of them are, as file:line.
        read_as: what was found out about how files are written, a sentence each.
        columns_left_out: columns that nobody reads, by name, with the rows whose value JSON cannot write (bytes, NaN).
    """

    rows_in: int = 0
    kept: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    duplicate_ids: int = 0
    contradictions: int = 0
    scored_pairs: int = 0
    columns_left_out: Counter[str] = field(default_factory=Counter)
    missing_words: Counter[str] = field(default_factory=Counter)
    missing_at: list[str] = field(default_factory=list)
    read_as: list[str] = field(default_factory=list)

    @property
    def quarantined(self) -> int:
        """Rows set aside."""
        return self.reasons.total()

    @property
    def records(self) -> int:
        """Records handed on."""
        return self.kept - self.duplicates

    def as_dict(self) -> dict[str, Any]:
        """All counts, ready for a manifest."""
        return {
            "rows_in": self.rows_in,
            "kept": self.kept,
            "quarantined": self.quarantined,
            "reasons": dict(self.reasons.most_common()),
            "duplicates": self.duplicates,
            "records": self.records,
            "duplicate_ids": self.duplicate_ids,
            "contradictions": self.contradictions,
            "scored_pairs": self.scored_pairs,
            "columns_left_out": dict(self.columns_left_out.most_common()),
            "missing_words": dict(self.missing_words.most_common()),
            "missing_at": list(self.missing_at),
            "read_as": list(self.read_as),
        }


def remarks(counts: Mapping[str, Any]) -> list[str]:
    """What a user should know of columns that were not used, a sentence each.

    Args:
        counts: of ReadCounts.as_dict; of an earlier release, perhaps.
    """
    told = list(counts.get("read_as", ()))
    if scored := counts.get("scored_pairs"):
        told.append(
            f"{scored} pairs have two scores (chosen_score and rejected_score); their difference is no margin, unless "
            "a reward model asks for it with reward.margins: scores"
        )
    if left_out := counts.get("columns_left_out"):
        names = ", ".join(f"{printable(str(name)[:40])} ({rows})" for name, rows in list(left_out.items())[:5])
        told.append(f"columns whose values JSON cannot write (bytes, NaN) are not used and left out, by rows: {names}")
    if words := counts.get("missing_words"):
        total = sum(words.values())
        named = ", ".join(f"{printable(word)!r} ({rows})" for word, rows in list(words.items())[:5])
        places = ", ".join(printable(place) for place in counts["missing_at"])
        more = ", …" if total > len(counts["missing_at"]) else ""
        told.append(
            f"warning: {total} records have a turn or an answer that stands for a missing value, {named}; they are "
            f"kept: remove the rows unless that is what people said ({places}{more})"
        )
    return told


class RecordStream(Generic[R]):
    """An iterator over records.

    Attributes:
        counts: up to date at every moment, and final once the iterator is used up.
        place: file and line of the record handed on last.
        row: the row that it is of, as it was read: its columns may hold Unwritable.
    """

    def __init__(
        self, parts: Sequence[Part], kind: type[R], *, split: str, quarantine: Quarantine, deduplicate: bool
    ) -> None:
        self.counts = ReadCounts()
        self.place = ("", 0)
        self.row: dict[str, Any] = {}
        self._parts = parts
        self._kind = kind
        self._split = split
        self._quarantine = quarantine
        self._filter = DuplicateFilter() if deduplicate else None
        self._records = self._all_records()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> R:
        return next(self._records)

    def set_aside(self, record: R, place: Place, problem: Problem) -> None:
        """Put a record that was handed on, and turned out to be of no use, into quarantine."""
        self.counts.kept -= 1
        self._set_aside(*place, problem, record.model_dump(mode="json"))

    def _all_records(self) -> Iterator[R]:
        for part in self._parts:
            yield from self._part_records(part)
        if self.counts.kept == 0:
            raise self._nothing_kept()

    def _part_records(self, part: Part) -> Iterator[R]:
        columns = _Columns(part.name, self._kind)
        for row in read_part(part, split=self._split, note=lambda said: self._note(part, said)):
            self.counts.rows_in += 1
            record = self._record(row, columns)
            if columns.any_known and columns.waiting:
                self._set_waiting_aside(columns)
            if record is None:
                continue
            self.counts.kept += 1
            if isinstance(record, Preference) and record.margin is None and record.score_difference is not None:
                self.counts.scored_pairs += 1
            if (word := missing_word(record)) is not None:
                self.counts.missing_words[word] += 1
                if len(self.counts.missing_at) < _MISSING_SHOWN:
                    self.counts.missing_at.append(f"{row.file}:{row.line}")
            if self._filter is None or not self._is_duplicate(self._filter, record):
                self.place, self.row = (row.file, row.line), row.value or {}
                yield record
        columns.require_known()

    def _note(self, part: Part, said: str) -> None:
        self.counts.read_as.append(f"{printable(part.name)}: {said}")

    def _record(self, row: Row, columns: _Columns) -> R | None:
        if row.value is None or row.problem is not None:
            if row.problem is None:
                raise TypeError("a row has neither a value nor a problem")
            self._set_aside(row.file, row.line, row.problem, row.raw)
            return None
        value = with_known_names(row.value)
        shape = columns.shape(value)
        if shape is None:
            columns.waiting.append((row.file, row.line, excerpt(row.value)))
            return None
        try:
            if any(isinstance(item, Unwritable) for item in value.values()):
                value, left_out = without_unwritable(value, shape)
                self.counts.columns_left_out.update(left_out)
            return convert(value, self._kind, shape)
        except RowError as error:
            self._set_aside(row.file, row.line, error.problem, row.value)
            return None

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

    def _nothing_kept(self) -> DataError:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in self.counts.reasons.most_common(3))
        where = self._quarantine.path
        return DataError(
            f"{', '.join(part.name for part in self._parts)}: none of {self.counts.rows_in} rows is a "
            f"{self._kind.__name__.lower()}: {reasons}",
            f"See the rows in {where}." if where else "Correct the rows; docs/data.md shows one of each format.",
        )


class _Columns:
    """The shapes of one part's rows, looked up once for each set of columns.

    Attributes:
        any_known: whether the columns of any row so far had a shape.
        waiting: rows without one. While none has one the file itself may be the wrong one, and then these rows
            are not worth a quarantine file.
    """

    def __init__(self, name: str, kind: type[Any]) -> None:
        self.name = name
        self.any_known = False
        self.waiting: list[tuple[str, int, str]] = []
        self._kind = kind
        self._shapes: dict[tuple[str, ...], Shape | None] = {}
        self._found: dict[str, None] = {}

    def shape(self, value: dict[str, Any]) -> Shape | None:
        """The shape of a row with these columns, if there is one.

        Raises:
            DataError: there is none, nor for any of a thousand rows before it.
        """
        names = tuple(value)
        if names not in self._shapes:
            if len(self._shapes) >= _MOST_COLUMN_SETS:
                self._shapes.clear()
            self._shapes[names] = shape_of(names, self._kind)
        shape = self._shapes[names]
        if shape is not None:
            self.any_known = True
        elif not self.any_known:
            if len(self._found) < _MOST_COLUMN_SETS:
                self._found.update(dict.fromkeys(names))
            if len(self.waiting) >= _ROWS_BEFORE_GIVING_UP:
                self.require_known()
        return shape

    def require_known(self) -> None:
        """Raise DataError if rows had columns and those of none had a shape."""
        if self.any_known or not self.waiting:
            return
        found = ", ".join(printable(name[:40]) for name in list(self._found)[:12]) or "none"
        more = ", …" if len(self._found) > 12 else ""
        formats = "; ".join(str(shape) for shape in SHAPES[self._kind])
        raise DataError(
            f"{self.name}: its columns ({found}{more}) fit no format of a {self._kind.__name__.lower()}",
            f"Rename them to one of: {formats}.",
        )


def read_records(
    sources: str | Sequence[str],
    kind: type[R],
    *,
    quarantine: Quarantine,
    split: str = "train",
    deduplicate: bool = True,
    text: TextForm = AS_FOUND,
) -> RecordStream[R]:
    """Read sources as records of one kind, in order and in bounded memory (see prefine.data.reading for sources).

    Args:
        sources: one source or several; duplicates are found across all of them.
        kind: Preference, Vote, Demonstration or Prompt.
        quarantine: takes the rows that are not valid; its owner closes it.
        split: which part of a Hugging Face data set to read; files are read whole.
        deduplicate: hand on only the first of records with the same content.
        text: how text files are written.

    Raises:
        DataError: at once if a source cannot be found or is written by the quarantine; while iterating if one cannot
            be read, if none of its rows has columns that fit, or if in the end no row of any was kept.
    """
    names = [sources] if isinstance(sources, str) else list(sources)
    if not names:
        raise DataError("no data source is given", "Name a file, a folder or a data set.")
    parts = [part for name in names for part in locate(name, text)]
    written = quarantine.path and Path(quarantine.path).resolve()
    for part in parts:
        if part.path is not None and part.path.resolve() == written:
            raise DataError(f"{part.name}: is the quarantine file of this run", "Read another file.")
    return RecordStream(parts, kind, split=split, quarantine=quarantine, deduplicate=deduplicate)
