"""Rows in memory as a source: lists of mappings, pandas data frames and `datasets`.

Recipes and manifests name sources by text. So rows in memory get a name with their number and a hash of their content:
`memory:320-rows-9f86d081884c7d65`. The same rows have the same name in every process, as prepared data, the reference
cache and exact resume require.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prefine.data.reading.rows import Problem, Row, Unwritable, has_lone_surrogate, kind_of, rejected, writable
from prefine.errors import DataError
from prefine.json_reading import MAX_NESTING, nesting_exceeds

MEMORY = "memory:"
_KNOWN = "Pass a list of dicts, a pandas DataFrame or a datasets.Dataset."
_TOO_DEEP = Problem("line", f"nests deeper than {MAX_NESTING} levels")
_HELD: dict[str, Iterable[Any]] = {}


def memory_source(rows: Any) -> str:
    """A source of rows held in memory; the name can be used wherever a file can, in this process.

    Lists and data frames are copied, so later changes to them have no effect. A `datasets.Dataset` is not copied. A
    `datasets.IterableDataset` is read once into memory, so it must be finite.

    Args:
        rows: mappings, one a row, in a list or tuple; a pandas DataFrame, whose missing values (NaN, NaT, NA) are null
            and whose index is left out; a `datasets.Dataset` or `IterableDataset`.

    Raises:
        DataError: another type, such as a generator, which can be read only once; no rows; a data frame with two
            columns of one name.
    """
    held = _held(rows)
    digest, count = hashlib.sha256(), 0
    for row in _numbered(held, MEMORY):
        count += 1
        digest.update(_text_of(row).encode("ascii") + b"\n")
    if count == 0:
        raise DataError("rows given from Python: there are none", "Give at least one row.")
    name = f"{MEMORY}{count}-rows-{digest.hexdigest()[:16]}"
    _HELD[name] = held
    return name


@contextmanager
def held_source(rows: Any) -> Iterator[str]:
    """As `memory_source`, as a context: at its end the rows are released, unless they were held before."""
    before = set(_HELD)
    name = memory_source(rows)
    try:
        yield name
    finally:
        if name not in before:
            _HELD.pop(name, None)


def is_rows(value: object) -> bool:
    """Whether a value given for a source is rows (for `memory_source`), not names of sources."""
    if value is None or isinstance(value, str | os.PathLike):
        return False
    return not isinstance(value, list | tuple) or any(isinstance(item, Mapping) for item in value)


def is_held(source: str) -> bool:
    """Whether this process holds the rows of that name."""
    return source in _HELD


def read_memory(source: str) -> Iterator[Row]:
    """The rows held under that name, numbered from 1."""
    yield from _numbered(_HELD[source], source)


def _held(rows: Any) -> Iterable[Any]:
    """The rows to hold: a copy, or an immutable dataset."""
    datasets, pandas = sys.modules.get("datasets"), sys.modules.get("pandas")
    if pandas is not None and isinstance(rows, pandas.DataFrame):
        return _of_frame(rows)
    if datasets is not None and isinstance(rows, datasets.Dataset):
        values: Iterable[Any] = rows.with_format(None)  # Python values, whatever format is set
        return values
    if datasets is not None and isinstance(rows, datasets.IterableDataset):
        return [_plain_row(row) for row in rows.with_format(None)]
    if datasets is not None and isinstance(rows, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise DataError(
            f"rows given from Python: a dictionary of the splits {', '.join(rows)}",
            "Pass one of them, as in rows['train'].",
        )
    if isinstance(rows, list | tuple):
        return [_plain_row(row) for row in rows]
    if isinstance(rows, Iterator):
        raise DataError(
            "rows given from Python: a generator, which can be read only once, and prefine reads rows several times",
            "Pass list(rows).",
        )
    raise DataError(f"rows given from Python: {type(rows).__name__} is not a type that prefine reads", _KNOWN)


def _of_frame(frame: Any) -> list[dict[str, Any] | Problem]:
    names = [str(name) for name in frame.columns]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"rows given from Python: two columns have the name {twice!r}", "Rename one of the two.")
    whole = frame.astype(object).where(frame.notna(), None)
    return [_plain_row(dict(zip(names, row, strict=True))) for row in whole.itertuples(index=False, name=None)]


def _plain_row(value: Any) -> dict[str, Any] | Problem:
    """A copy of a row in plain Python values, or its problem."""
    if isinstance(value, Problem):
        return value
    if not isinstance(value, Mapping):
        return Problem("line", f"is {kind_of(value)}, not an object")
    try:
        names = [str(name) for name in value]
        if twice := next((name for name in names if names.count(name) > 1), None):
            return Problem(twice[:80], "is given twice")
        row = writable({str(name): _plain(item) for name, item in value.items()})
        written = {name: item.form if isinstance(item, Unwritable) else item for name, item in row.items()}
        if has_lone_surrogate(written):
            return Problem("line", "has a lone surrogate (half of a character)")
        if nesting_exceeds(written, MAX_NESTING):
            return _TOO_DEEP
    except RecursionError:
        return _TOO_DEEP
    except ValueError:  # of json: a number of thousands of digits
        return Problem("line", "has a number with too many digits")
    return row


def _plain(value: Any) -> Any:
    """A copy with arrays and scalars of numpy, torch and similar libraries as Python lists and numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.tolist() if callable(getattr(value, "tolist", None)) else value


def _numbered(rows: Iterable[Any], source: str) -> Iterator[Row]:
    for number, value in enumerate(rows, start=1):
        row = _plain_row(value)
        yield rejected(source, number, row, "") if isinstance(row, Problem) else Row(source, number, row)


def _text_of(row: Row) -> str:
    """A row as text that differs whenever its content differs."""
    if row.value is None:
        return json.dumps(str(row.problem))
    return json.dumps(row.value, default=lambda item: [item.reason, item.form])
