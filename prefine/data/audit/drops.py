"""Which rows a cleaned copy leaves out, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from prefine.data.records.layouts.trees import is_flat_message
from prefine.data.records.selection import Place


class Why(StrEnum):
    """Why a row is left out of a cleaned copy."""

    DUPLICATE = "repeats an earlier row"
    NEAR_DUPLICATE = "nearly repeats an earlier row"
    EQUAL_ANSWERS = "chosen and rejected are the same text"
    CONTRADICTION = "contradicts another row"
    LEAK = "its prompt is in the held-out data"
    NEAR_LEAK = "its prompt is nearly one of the held-out data"


@dataclass(frozen=True, slots=True)
class DroppedRow:
    """A row to leave out; `other` is the row that it repeats, contradicts or leaks, if there is one."""

    why: Why
    other: Place | None = None


class Drops:
    """Collects records to leave out, by row. A row is left out only if all of its records are."""

    def __init__(self) -> None:
        self._records: dict[int, DroppedRow] = {}
        self._rows: dict[Place, DroppedRow] = {}
        self._dropped: Counter[Place] = Counter()
        self._further: Counter[Place] = Counter()
        self._without_records: dict[Place, DroppedRow] = {}
        self._trees: set[Place] = set()
        self._last: Place | None = None

    def read(self, place: Place, row: Mapping[str, Any]) -> None:
        """Note that a record was read from a row; those of one row come one after the other."""
        if place == self._last:
            self._further[place] += 1
        self._last = place
        self._without_records.pop(place, None)
        if is_flat_message(row):
            self._trees.add(place)

    def drop(self, number: int, place: Place, why: Why, other: Place | None = None) -> None:
        """Leave out record `number`, of the row at `place`; the first reason counts, of a record and of a row."""
        if number in self._records:
            return
        self._records[number] = DroppedRow(why, other)
        self._rows.setdefault(place, self._records[number])
        self._dropped[place] += 1

    def drop_row(self, place: Place, why: Why) -> None:
        """Leave out a row unless it gives a record."""
        if place != self._last:
            self._without_records[place] = DroppedRow(why)

    def of(self, number: int) -> DroppedRow | None:
        """Why a record is left out; None if it is not."""
        return self._records.get(number)

    def rows(self) -> dict[Place, DroppedRow]:
        """Rows to leave out. A message of a tree stays: other rows need it."""
        rows = self._without_records | {
            place: row for place, row in self._rows.items() if self._dropped[place] > self._further[place]
        }
        return {place: row for place, row in rows.items() if place not in self._trees}
