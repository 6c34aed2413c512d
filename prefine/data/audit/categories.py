"""Whether columns that name categories are balanced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from prefine.data.audit.entries import Entry, at, excerpt_of
from prefine.data.audit.findings import MOST_EXAMPLES, AuditExample, AuditFinding, Severity, unchecked
from prefine.data.reading.rows import Unwritable
from prefine.data.records.row_flags import plain_name
from prefine.data.records.selection import Place
from prefine.formatting import listing, percent, plural

_COLUMNS = frozenset(
    (
        *("category", "categories", "task", "tasks", "task_type", "task_name", "type", "topic", "topics", "domain"),
        *("domains", "subset", "source", "dataset", "data_source", "difficulty", "intent", "intents", "subject"),
        *("subjects", "label_source", "language", "languages", "lang", "criterion", "tag", "tags", "genre", "skill"),
        *("skills", "level"),
    )
)
_MOST_VALUES = 100
_MOST_CHARACTERS = 60
_FEWEST = 5
_DOMINANT = 0.8
_RARE = 0.01
_SHOWN = 8


@dataclass
class _Column:
    """Rows by the value of one column; a row with a list counts for each of its items.

    Attributes:
        first: the first row with a value, and the start of its prompt.
        rows: whose value is counted.
        uncounted: rows whose value is not, by the reason.
        too_many: whether there are more values than categories have.
    """

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, tuple[Place, str]] = field(default_factory=dict)
    rows: int = 0
    uncounted: Counter[str] = field(default_factory=Counter)
    too_many: bool = False

    def add(self, value: Any, entry: Entry) -> None:
        """Take the value of a row."""
        items = list(value) if isinstance(value, list | tuple) else [value]
        items = [item for item in items if item is not None and item != ""]
        if self.too_many or not items:
            return
        reason = next(filter(None, map(_why_not, items)), "")
        if reason:
            self.uncounted[reason] += 1
            return
        self.rows += 1
        for name in dict.fromkeys(map(_name, items)):
            self.counts[name] += 1
            if name not in self.first:
                self.first[name] = entry.place, excerpt_of(entry.prompt)
        if len(self.counts) > _MOST_VALUES:
            self.too_many = True
            self.counts.clear()
            self.first.clear()

    @property
    def usable(self) -> bool:
        """Whether it holds categories."""
        return bool(self.counts) and self.uncounted.total() <= self.rows

    @property
    def left_out(self) -> str:
        """What is not counted and why, as the end of a sentence; empty if everything is."""
        if self.too_many:
            return f"is left out: it has more than {_MOST_VALUES} values"
        if self.uncounted:
            ((reason, _),) = self.uncounted.most_common(1)
            where = f" in {plural(self.uncounted.total(), 'row')}" if self.usable else ""
            return f"is left out{where}: it {reason}"
        return "" if self.usable else "is empty"

    @property
    def dominant(self) -> tuple[str, float] | None:
        """The value that most rows have, and its share of them; None if no value has so many."""
        value, most = self.counts.most_common(1)[0]
        return (value, most / self.rows) if most >= _DOMINANT * self.rows else None

    @property
    def rare(self) -> list[str]:
        """Values of few rows, the rarest last."""
        return [name for name, count in self.counts.most_common() if count < max(_FEWEST, _RARE * self.rows)]


class Categories:
    """Counts the values of columns whose names say that they hold categories."""

    def __init__(self) -> None:
        self._columns: dict[str, _Column] = {}

    def add(self, entry: Entry) -> None:
        """Take a record."""
        for name, value in entry.row.items():
            if _is_category(name):
                self._columns.setdefault(name, _Column()).add(value, entry)

    def finding(self) -> AuditFinding:
        """Of all records."""
        check, title = "categories", "Category balance"
        usable = {name: column for name, column in self._columns.items() if column.usable}
        left_out = [
            f"{excerpt_of(name)} {column.left_out}." for name, column in self._columns.items() if column.left_out
        ]
        if not usable:
            why = " ".join(left_out) or "No column has a name of categories (category, task, topic, source, …)."
            return unchecked(check, title, why)
        rare = sum(len(column.rare) for column in usable.values())
        severity, remedy = Severity.NONE, ""
        if any(column.dominant for column in usable.values()):
            severity = Severity.MEDIUM
            remedy = (
                "A figure over all rows is about the dominant category, and little is learned of others: collect more "
                "of them, and evaluate each one. There is nothing to do if only this one is wanted."
            )
        elif rare:
            severity = Severity.LOW
            remedy = (
                f"Categories with fewer than {_FEWEST} rows, or {percent(_RARE)}, are hardly learned and cannot be "
                "measured: collect more of them, and evaluate each one."
            )
        return AuditFinding(
            check,
            title,
            severity,
            " ".join([*(_says(name, column) for name, column in usable.items()), *left_out]),
            rare,
            sum(len(column.counts) for column in usable.values()),
            "categories",
            remedy,
            list(_examples(usable))[:MOST_EXAMPLES],
            {
                "columns": {
                    name: {excerpt_of(value): count for value, count in column.counts.most_common()}
                    for name, column in usable.items()
                },
                "rows": {name: column.rows for name, column in usable.items()},
            },
        )


def _says(name: str, column: _Column) -> str:
    """The shares of a column's values, of the rows that have one."""
    most = column.counts.most_common(_SHOWN)
    parts = [f"{excerpt_of(value)} {percent(count / column.rows)}" for value, count in most]
    more = len(column.counts) - _SHOWN
    says = f"{excerpt_of(name)}: {', '.join(parts) + f', and {more} more' if more > 0 else listing(parts)}."
    if len(column.counts) == 1:
        return f"{says} All {plural(column.rows, 'row')} with a value have this one."
    if column.dominant is not None:
        value, share = column.dominant
        return f"{says} {excerpt_of(value)} is {percent(share)} of {excerpt_of(name)}."
    return says


def _examples(columns: dict[str, _Column]) -> Iterator[AuditExample]:
    """The first row of each rare value, the rarest first."""
    for name, column in columns.items():
        for value in reversed(column.rare):
            place, prompt = column.first[value]
            note = f"{excerpt_of(name)}: {excerpt_of(value)} ({plural(column.counts[value], 'row')})"
            yield AuditExample([at(place)], prompt, note)


@lru_cache(maxsize=1_000)
def _is_category(name: str) -> bool:
    return plain_name(name) in _COLUMNS


def _why_not(item: Any) -> str:
    """Why a value names no category; empty if it does."""
    if isinstance(item, Unwritable):
        return item.reason
    if isinstance(item, dict | list | tuple):
        return "holds objects or lists of lists"
    if isinstance(item, float) and not item.is_integer():
        return "holds numbers with fractions"
    if len(str(item)) > _MOST_CHARACTERS:
        return f"holds texts of more than {_MOST_CHARACTERS} characters"
    return ""


def _name(item: Any) -> str:
    """A value as a reader writes it: true, 3, billing."""
    if isinstance(item, bool):
        return str(item).lower()
    return str(int(item)) if isinstance(item, float) else str(item)
