"""Columns under the names that layouts know: by data.columns, or spelled as Prompt, CHOSEN, Response 1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from prefine.data.reading.csv_rows import typed_cell
from prefine.data.reading.rows import Unwritable, printable
from prefine.data.records.layouts.shape import COMMON_COLUMNS
from prefine.data.records.layouts.table import known_columns
from prefine.data.records.row_flags import can_be_ignored, plain_name
from prefine.data.records.turns import FLAGS, MEDIA, OTHER_FLAGS
from prefine.data.records.unread_columns import listed
from prefine.errors import DataError

_MOST_SEEN = 100
_MISSING = object()


def with_known_names(value: dict[str, Any]) -> dict[str, Any]:
    """A row whose columns have the names that formats know, where only capitals, spaces or hyphens differ.

    A name is unchanged if another column has the known name already or would get it, too.
    """
    renamed = _renamed(tuple(value))
    return {renamed.get(name, name): item for name, item in value.items()} if renamed else value


@lru_cache(maxsize=1_000)
def _renamed(names: tuple[str, ...]) -> dict[str, str]:
    """The columns to rename, with their known names."""
    meant = {name: plain_name(name) for name in names}
    wanted = Counter(meant.values())
    return {
        name: known
        for name, known in meant.items()
        if name != known and known in _known_columns() | {*OTHER_FLAGS} and wanted[known] == 1 and known not in names
    }


@lru_cache(maxsize=1)
def _known_columns() -> frozenset[str]:
    return known_columns() | COMMON_COLUMNS | frozenset((*MEDIA, *FLAGS))


class ColumnNames:
    """Renames the columns of rows, as data.columns says.

    Args:
        columns: prefine's name -> the file's column; None: the column of that name is not read, and is kept as extra.

    Raises:
        DataError: no layout reads a column of that name.
    """

    def __init__(self, columns: Mapping[str, str | None]) -> None:
        known = _known_columns()
        for name, column in columns.items():
            if name not in known and not (column is None and can_be_ignored(name)):
                near = get_close_matches(name, known, n=1)
                remedy = f"Did you mean {near[0]}?" if near else "docs/data.md shows the formats and their columns."
                raise DataError(f"data.columns: {name}: {column}: prefine reads no column {printable(name)!r}", remedy)
        self._columns = {name: column for name, column in columns.items() if column is not None}
        self._unread = [name for name, column in columns.items() if column is None]
        self._wanted = set(self._columns.values())
        self._unseen = set(self._wanted)
        self._seen: dict[str, None] = {}

    def applied(self, value: dict[str, Any], *, is_table: bool = False) -> dict[str, Any]:
        """The row under prefine's names.

        Args:
            value: the row under the file's.
            is_table: whether it is from a CSV or TSV file, in which cells are typed by their columns.
        """
        if not (self._columns or self._unread):
            return with_known_names(value)
        if self._unseen and len(self._seen) < _MOST_SEEN:
            self._seen.update(dict.fromkeys(value))
        renamed = _renamed(tuple(value)) if self._unread else {}
        unread = [name for name in value if name in self._unread or renamed.get(name) in self._unread]
        named = {name: item for name, item in value.items() if name not in self._wanted and name not in unread}
        for name, column in self._columns.items():
            found = _looked_up(value, column)
            if found is _MISSING:
                continue
            self._unseen.discard(column)
            if found is not None or named.get(name) is None:  # a file may have rows with either name
                named[name] = typed_cell(name, found) if is_table and isinstance(found, str) else found
        beside = {name: value[name] for name in unread if not _is_unwritable(value[name])}
        if beside:
            own = named.get("extra")
            named["extra"] = {**(own if isinstance(own, dict) else {} if own is None else {"extra": own}), **beside}
        return with_known_names(named)

    @property
    def used(self) -> dict[str, str | None]:
        """Of the columns that were given, those that a row so far has had, and those that are not read."""
        seen = {name: column for name, column in self._columns.items() if column not in self._unseen}
        return {**seen, **dict.fromkeys(self._unread)}

    def require_seen(self, source: str) -> None:
        """Raise DataError if no row has a column that the user named."""
        if not self._unseen:
            return
        missing = sorted(self._unseen)[0]
        name = next(name for name, column in self._columns.items() if column == missing)
        near = get_close_matches(missing, self._seen, n=1)
        raise DataError(
            f"{source}: data.columns says {name}: {printable(missing)}, and no row has a column {printable(missing)}; "
            f"there are {listed(list(self._seen))}",
            f"Did you mean {printable(near[0])}?" if near else "Name one of those.",
        )


def _is_unwritable(value: Any) -> bool:
    return isinstance(value, Unwritable)


def _looked_up(value: Mapping[str, Any], column: str) -> Any:
    """A column; dots in its name lead into objects."""
    if column in value:
        return value[column]
    found: Any = value
    for part in column.split("."):
        if not isinstance(found, dict) or part not in found:
            return _MISSING
        found = found[part]
    return found
