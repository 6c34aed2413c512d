"""Rows from Arrow: Parquet files, folders saved by `datasets`, and datasets of the Hugging Face hub."""

from __future__ import annotations

import gzip
import importlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prefine.data.reading.json_rows import TOO_LONG
from prefine.data.reading.rows import MAX_ROW_BYTES, Row, RowError, Unwritable, rejected, stated_form, writable
from prefine.errors import DataError
from prefine.json_reading import read_json_object

_ROWS_AT_ONCE = 128
_BATCH_BYTES = 64 * 1024 * 1024
# A row group that expands by more than this factor, to more than this size, is refused. Real data compresses to a
# hundredth at best; a crafted kilobyte can expand to gigabytes.
_MOST_EXPANDED_BYTES = 256 * 1024 * 1024
_MOST_EXPANSION = 1_000
_BYTES_A_VALUE = 8


def read_parquet(path: Path, *, compressed: bool, file: str) -> Iterator[Row]:
    """One row for each Parquet row; rows are numbered from 1.

    Memory is bounded: texts stay dictionary-encoded until a row's size is known, a row longer than MAX_ROW_BYTES is
    quarantined, and a row group that would expand a thousandfold is refused before it is read. Parquet is read from its
    end, so a .gz is first unpacked into a temporary file on disk.

    Raises:
        DataError: the file is not Parquet, it is damaged, or it would fill memory.
    """
    import pyarrow
    import pyarrow.parquet

    with tempfile.TemporaryFile() as unpacked:
        if compressed:
            with gzip.open(path) as stream:
                shutil.copyfileobj(stream, unpacked)
            unpacked.seek(0)
        number = 0
        try:
            with pyarrow.parquet.ParquetFile(unpacked if compressed else str(path)) as table:
                texts = [column.path for column in table.schema if column.physical_type == "BYTE_ARRAY"]
            with pyarrow.parquet.ParquetFile(unpacked if compressed else str(path), read_dictionary=texts) as table:
                for group in range(table.num_row_groups):
                    size = _rows_at_once(table.metadata.row_group(group), file)
                    for batch in table.iter_batches(batch_size=size, row_groups=[group]):
                        for value in _batch_values(batch):
                            number += 1
                            yield _plain_row(value, file, number)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(
                f"{file}: cannot be read as Parquet after row {number}: {_first_line(error)}",
                "Write the file again; it may be truncated.",
            ) from error


def _rows_at_once(group: Any, file: str) -> int:
    """How many rows of a row group to read at once, by the sizes in its header.

    Raises:
        DataError: it would expand far beyond its size in the file.
    """
    columns = [group.column(index) for index in range(group.num_columns)]
    stored = sum(column.total_compressed_size for column in columns)
    values = sum(column.num_values for column in columns if column.num_values > group.num_rows)
    expanded = sum(column.total_uncompressed_size for column in columns) + values * _BYTES_A_VALUE
    if expanded > _MOST_EXPANDED_BYTES and expanded > _MOST_EXPANSION * stored:
        raise DataError(
            f"{file}: {stored} bytes of it stand for {expanded} bytes in memory, more than {_MOST_EXPANSION} times as "
            "many",
            "Write it with smaller row groups (row_group_size=1000), or leave out the columns that are not needed.",
        )
    fitting: int = _BATCH_BYTES * group.num_rows // max(1, expanded)
    return max(1, min(_ROWS_AT_ONCE, fitting))


def _batch_values(batch: Any) -> Iterator[Mapping[str, Any] | RowError]:
    """The values of a record batch; row by row if it is large or Python cannot represent all of it."""
    if _size(batch) <= _BATCH_BYTES:
        try:
            yield from batch.to_pylist()
            return
        except ValueError:  # text that is not UTF-8, a date that no Python type can represent
            pass
    for index in range(batch.num_rows):
        row = batch.slice(index, 1)
        yield _row_values(row) if _size(row) <= MAX_ROW_BYTES else RowError(TOO_LONG.field, TOO_LONG.reason)


def _row_values(row: Any) -> dict[str, Any]:
    """The values of a batch of one row; Unwritable for a value that Python cannot represent."""
    values: dict[str, Any] = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            (values[name],) = column.to_pylist()
        except UnicodeDecodeError:
            values[name] = Unwritable("is not valid UTF-8", stated_form(_binary(column)))
        except ValueError as error:
            values[name] = Unwritable(f"cannot be read: {_first_line(error)}")
    return values


def _binary(text: Any) -> bytes | None:
    """The bytes of a column with one text that is not UTF-8; None if the text is nested."""
    import pyarrow

    try:
        (found,) = text.cast(pyarrow.large_binary()).to_pylist()
    except pyarrow.ArrowException:
        return None
    return bytes(found)


def _size(data: Any) -> int:
    """Bytes of the values of a record batch or an array, each text counted as often as it occurs."""
    import pyarrow
    import pyarrow.compute

    if isinstance(data, pyarrow.RecordBatch):
        return sum(map(_size, data.columns))
    kind, values = data.type, len(data) * _BYTES_A_VALUE
    if isinstance(data, pyarrow.ExtensionArray):
        return _size(data.storage)
    if isinstance(data, pyarrow.DictionaryArray):
        lengths = pyarrow.compute.binary_length(data.dictionary).cast(pyarrow.int64())
        return values + (pyarrow.compute.sum(lengths.take(data.indices)).as_py() or 0)
    if isinstance(data, pyarrow.StructArray):
        return values + sum(map(_size, data.flatten()))
    if isinstance(data, pyarrow.MapArray):
        return values + _size(data.keys) + _size(data.items)
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or pyarrow.types.is_fixed_size_list(kind):
        return values + _size(data.flatten())
    if pyarrow.types.is_binary(kind) or pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        return values + (pyarrow.compute.sum(pyarrow.compute.binary_length(data)).as_py() or 0)
    return values


def _plain_row(value: Mapping[str, Any] | RowError, file: str, number: int) -> Row:
    if isinstance(value, RowError):
        return rejected(file, number, value.problem, "")
    return Row(file, number, writable({str(name): item for name, item in value.items()}))


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def read_saved_dataset(folder: Path, *, split: str) -> Iterator[Row]:
    """One row for each row of a folder written by `datasets.save_to_disk`, memory-mapped.

    `split` chooses from a saved dictionary of splits; it is ignored for a single dataset.

    Raises:
        DataError: the split is not there, or the folder is damaged.
    """
    splits_file = folder / "dataset_dict.json"
    if splits_file.is_file():
        try:
            splits = [str(name) for name in read_json_object(splits_file)["splits"]]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{splits_file}: is damaged: {_first_line(error)}", "Save the dataset again.") from error
        if split not in splits:
            raise DataError(f"{folder}: has no split {split!r}", f"Choose one of: {', '.join(splits)}.")
        folder = folder / split
    datasets = _datasets()
    yield from _numbered(lambda: datasets.load_from_disk(str(folder)), str(folder), "Save the dataset again.")


def read_hub_dataset(name: str, *, split: str, source: str) -> Iterator[Row]:
    """One row for each row of a dataset that `datasets.load_dataset` can stream: a hub id, or a local folder.

    `owner/name#config` chooses a configuration. Code that comes with a dataset never runs.

    Raises:
        DataError: the dataset cannot be reached, has no such split, or cannot be read completely.
    """
    path, _, config = name.partition("#")
    datasets = _datasets()
    yield from _numbered(
        lambda: datasets.load_dataset(path, config or None, split=split, streaming=True),
        f"{source}[{split}]",
        "Check the id, the split and the network (HF_HUB_OFFLINE), or download the files and name them instead.",
    )


def _numbered(open_dataset: Any, file: str, remedy: str) -> Iterator[Row]:
    """Open and iterate in one place: `datasets` reports most problems only when rows are read."""
    number = 0
    try:
        rows: Iterable[Mapping[str, Any]] = open_dataset()
        for value in rows:
            number += 1
            yield _plain_row(value, file, number)
    except DataError:
        raise
    except Exception as error:  # loaders raise any error of their file formats and HTTP clients
        where = f"after row {number}" if number else "at all"
        raise DataError(f"{file}: cannot be read {where}: {_first_line(error)}", remedy) from error


def _datasets() -> Any:
    # Imported here because it takes a second, and files do not need it.
    return importlib.import_module("datasets")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(". ")
