"""The kind of records in a source, by its columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, cast

from prefine.data.reading.quarantine import counted_reason
from prefine.data.reading.rows import RowError
from prefine.data.reading.sources import Wanted, locate, read_part
from prefine.data.records.column_names import ColumnNames
from prefine.data.records.layouts.trees import is_flat_message
from prefine.data.records.unread_columns import kind_in, unknown_columns
from prefine.errors import DataError
from prefine.records import Demonstration, Preference, Prompt, Vote
from prefine.row_rules import AS_WRITTEN, RowRules
from prefine.text_form import AS_FOUND, TextForm

# A row of an earlier kind can also be read as a later kind, so the first that fits is the intended one.
KINDS: dict[str, type[Any]] = {
    "preferences": Preference,
    "votes": Vote,
    "demonstrations": Demonstration,
    "prompts": Prompt,
}
_READABLE_ROWS = 100
_ROWS = 1_000


def kind_of_sources(
    sources: Sequence[str], *, split: str = "train", text: TextForm = AS_FOUND, rules: RowRules = AS_WRITTEN
) -> str:
    """The name of the kind (see KINDS) that most of the first rows of the first source have columns for.

    Args:
        sources: see prefine.data.reading.sources.
        split: of a Hugging Face dataset.
        text: delimiter and encoding of text files.
        rules: names of columns.

    Raises:
        DataError: a source cannot be found or read; no row can be read, or none has known columns.
    """
    parts = [part for source in sources for part in locate(source, text)]
    if not parts:
        raise DataError("no data source is given", "Name a file, a folder or a dataset.")
    found: Counter[type[Any]] = Counter()
    columns: dict[str, None] = {}
    problems: Counter[str] = Counter()
    names = ColumnNames(rules.columns)
    is_table = parts[0].form in ("csv", "tsv")
    for row in islice(read_part(parts[0], split=split), _ROWS):
        if row.value is None:
            problem = row.problem or row.left_out
            problems[counted_reason(problem) if problem else "unreadable"] += 1
            continue
        columns |= dict.fromkeys(row.value)
        with suppress(RowError):
            found[_meant(names.applied(row.value, is_table=is_table))] += 1
        if found.total() == _READABLE_ROWS:
            break
    # Many messages of a tree have no rank, even if replies are ranked.
    found[Preference if found[Preference] else Demonstration] += found.pop(_Unranked, 0)
    del found[_Unknown]
    if found.total():
        most = max(found.values())
        return next(name for name, kind in KINDS.items() if found[kind] == most)
    if columns:
        names.require_seen(parts[0].name)
        raise unknown_columns(parts[0].name, list(columns), None)
    told = "; ".join(f"{reason} ({count})" for reason, count in problems.most_common(3))
    raise DataError(f"{parts[0].name}: no row of it can be read: {told}", "Correct the rows, or read another file.")


def name_of_kind(kind: type[Any]) -> Wanted:
    """The name of a kind of records; answers to be scored are those that were voted on."""
    return cast(Wanted, next((name for name, each in KINDS.items() if each is kind), "votes"))


class _Unranked:
    """Stands for a message of a tree without a rank."""


class _Unknown:
    """Stands for a row that fits no layout."""


def _meant(value: dict[str, Any]) -> type[Any]:
    if is_flat_message(value) and value.get("rank") is None:
        return _Unranked
    return kind_in(value) or _Unknown
