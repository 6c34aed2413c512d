"""What a source holds, found out from its columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any

from prefine.data.column_names import with_known_names
from prefine.data.convert import SHAPES, shape_of
from prefine.data.quarantine import counted_reason
from prefine.data.reading import locate, read_part
from prefine.data.rows import printable
from prefine.errors import DataError
from prefine.records import Demonstration, Preference, Prompt, Vote
from prefine.text_form import AS_FOUND, TextForm

# A row of an earlier kind can also be read as one of a later kind, so the first that fits is what it was meant for.
KINDS: dict[str, type[Any]] = {
    "preferences": Preference,
    "votes": Vote,
    "demonstrations": Demonstration,
    "prompts": Prompt,
}
_READABLE_ROWS = 100
_ROWS = 1_000


def kind_of_sources(sources: Sequence[str], *, split: str = "train", text: TextForm = AS_FOUND) -> str:
    """The name of the kind (see KINDS) that most of the first rows of the first source have columns for.

    Raises:
        DataError: a source that cannot be found or read; no row that can be read, or none with known columns.
    """
    parts = [part for source in sources for part in locate(source, text)]
    if not parts:
        raise DataError("no data source is given", "Name a file, a folder or a data set.")
    found: Counter[str] = Counter()
    columns: dict[str, None] = {}
    problems: Counter[str] = Counter()
    for row in islice(read_part(parts[0], split=split), _ROWS):
        if row.value is None:
            problems[counted_reason(row.problem) if row.problem else "unreadable"] += 1
            continue
        columns |= dict.fromkeys(row.value)
        found[_kind_of_row(with_known_names(row.value))] += 1
        if found.total() == _READABLE_ROWS:
            break
    del found[""]
    if found:
        most = max(found.values())
        return next(name for name in KINDS if found[name] == most)
    if columns:
        raise _unknown_columns(parts[0].name, list(columns))
    told = "; ".join(f"{reason} ({count})" for reason, count in problems.most_common(3))
    raise DataError(f"{parts[0].name}: no row of it can be read: {told}", "Correct the rows, or read another file.")


def _kind_of_row(value: dict[str, Any]) -> str:
    return next((name for name, kind in KINDS.items() if shape_of(value, kind) is not None), "")


def _unknown_columns(name: str, columns: list[str]) -> DataError:
    found = ", ".join(printable(column[:40]) for column in columns[:12]) or "none"
    more = ", …" if len(columns) > 12 else ""
    # Each format under the first kind it belongs to: a preference can be read as all others too.
    told: dict[str, str] = {}
    for kind, record in KINDS.items():
        for shape in SHAPES[record]:
            told.setdefault(str(shape), kind)
    formats = "; ".join(f"{kind} as {shape}" for shape, kind in told.items())
    return DataError(f"{name}: its columns ({found}{more}) fit no known format", f"Rename them to one of: {formats}.")
