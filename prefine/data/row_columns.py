"""A row as it was read, with columns of prefine's own behind its own: what `generate` and `score` write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prefine.data.reading.rows import Unwritable

_BESIDE = "source_"


def as_read(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row in their order and with their values; what JSON cannot write in its stated form.

    That is `"NaN"`, `"Infinity"` and `"-Infinity"` for such numbers and `{"base64": …}` for bytes.
    """
    return {name: item.form if isinstance(item, Unwritable) else item for name, item in row.items()}


def with_own(row: Mapping[str, Any], own: Mapping[str, Any], renamed: dict[str, str]) -> dict[str, Any]:
    """The row with columns of prefine's own; a column of the row that has the same name becomes source_NAME.

    Args:
        row: see `as_read`.
        own: what prefine adds.
        renamed: takes the names that were changed, with the new ones.
    """
    columns: dict[str, Any] = {}
    for name, item in row.items():
        kept = name
        while kept in own or (kept != name and kept in row):
            kept = _BESIDE + kept
        if kept != name:
            renamed[name] = kept
        columns[kept] = item
    return {**columns, **own}


def saying(
    row: Mapping[str, Any],
    own: Mapping[str, Any],
    used: Mapping[str, Any],
    says: Callable[[dict[str, Any]], bool],
    renamed: dict[str, str],
) -> dict[str, Any]:
    """As `with_own`; the columns `used` are added where the row read again would not say the same.

    A conversation in `messages`, for example, holds an earlier answer: beside a new one it needs its prompt.

    Args:
        row, own, renamed: see `with_own`.
        used: columns that say what prefine read out of the row.
        says: whether what comes out says that by itself.
    """
    renames: dict[str, str] = {}
    found = with_own(row, own, renames)
    if not says(found):
        renames.clear()
        found = with_own(row, {**used, **own}, renames)
    renamed |= renames
    return found


def renamings(renamed: Mapping[str, str]) -> list[str]:
    """A sentence for people on the names that were changed, if any were."""
    if not renamed:
        return []
    told = ", ".join(f"{name} as {kept}" for name, kept in renamed.items())
    return [f"Columns of the rows that have the names of prefine's own come back under others: {told}."]
