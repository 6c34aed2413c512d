"""Rows of `generate` and `score`: the columns of the row that was read, then prefine's own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Any

from prefine.data.reading.rows import Unwritable
from prefine.data.records.layouts.shape import SYSTEM_COLUMNS
from prefine.data.records.layouts.table import known_columns
from prefine.data.records.row_flags import plain_name
from prefine.errors import DataError
from prefine.records import Prompt

# Other columns of a row that add to its prompt.
_CONTEXT = frozenset({"history", "tools", "functions", *SYSTEM_COLUMNS})
_BESIDE = "source_"


def as_read(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row in order, with values that JSON cannot represent replaced.

    That is `"NaN"`, `"Infinity"` and `"-Infinity"` for such numbers and `{"base64": …}` for bytes.
    """
    return {name: item.form if isinstance(item, Unwritable) else item for name, item in row.items()}


def with_own(
    row: Mapping[str, Any], own: Mapping[str, Any], renamed: dict[str, str], aside: Collection[str] = ()
) -> dict[str, Any]:
    """The row with prefine's columns; a column of the row with the same name becomes source_NAME.

    Args:
        row: see `as_read`.
        own: prefine's columns.
        renamed: receives old name -> new name.
        aside: further columns to rename, in lower case and with `_` for spaces.
    """
    columns: dict[str, Any] = {}
    for name, item in row.items():
        kept = _BESIDE + name if plain_name(name) in aside else name
        while kept in own or (kept != name and kept in row):
            kept = _BESIDE + kept
        if kept != name:
            renamed[name] = kept
        columns[kept] = item
    return {**columns, **own}


def said_of(record: Prompt) -> dict[str, Any]:
    """Columns for the prompt of a record, tools included."""
    prompt = [turn.model_dump(mode="json", exclude_defaults=True) for turn in record.prompt]
    return {"prompt": prompt, **({"tools": list(record.tools)} if record.tools else {})}


def saying(
    row: Mapping[str, Any],
    own: Mapping[str, Any],
    used: Mapping[str, Any],
    says: Callable[[dict[str, Any]], bool],
    renamed: dict[str, str],
) -> dict[str, Any]:
    """As `with_own`; the columns `used` are added if the row, read again, would not give the same.

    A conversation in `messages`, for example, holds an earlier answer: beside a new one it needs its prompt. Then
    columns that add to the prompt, such as `history`, become source_NAME, as `prompt` contains them. So do columns by
    which the row would be read in another way, such as two answers of a pair.

    Args:
        row, own, renamed: see `with_own`.
        used: columns with what prefine read from the row.
        says: whether the resulting row gives the same when it is read.

    Raises:
        DataError: no form of the row does.
    """
    in_place = {name for name, item in used.items() if name in row and row[name] == item}
    added = {name: item for name, item in used.items() if name not in in_place}
    others = _layout_columns() - used.keys() - own.keys() - _CONTEXT
    nothing: Mapping[str, Any] = {}
    for more, aside in (
        (nothing, frozenset[str]()),
        (nothing, others),
        (added, _CONTEXT - in_place),
        (added, (others | _CONTEXT) - in_place),
    ):
        renames: dict[str, str] = {}
        found = with_own(row, {**more, **own}, renames, aside)
        if says(found):
            renamed |= renames
            return found
    raise DataError(
        f"a row with the columns {', '.join(row)} cannot be written so that it would be read in the same way",
        "Remove the columns that are not needed.",
    )


@lru_cache(maxsize=1)
def _layout_columns() -> frozenset[str]:
    return known_columns()


def renamings(renamed: Mapping[str, str]) -> list[str]:
    """A sentence for the user on renamed columns, if any."""
    if not renamed:
        return []
    told = ", ".join(f"{name} as {kept}" for name, kept in renamed.items())
    return [f"Columns whose names prefine uses, or that would change how a row is read, are renamed: {told}."]
