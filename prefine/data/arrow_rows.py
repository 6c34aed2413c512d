"""Rows from Arrow: Parquet files, folders saved by `datasets`, and data sets of the Hugging Face hub."""

from __future__ import annotations

import gzip
import importlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prefine.data.rows import Row, RowError, json_plain, rejected
from prefine.errors import DataError
from prefine.json_reading import read_json_object

_ROWS_AT_ONCE = 128


def read_parquet(path: Path, *, compressed: bool, file: str) -> Iterator[Row]:
    """One row for each Parquet row; rows are numbered from 1.

    Parquet is read from its end, so a .gz is first unpacked into a temporary file on disk.

    Raises:
        DataError: the file is not Parquet, or it is damaged.
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
                for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE):
                    for value in _batch_values(batch):
                        number += 1
                        yield _plain_row(value, file, number)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(
                f"{file}: cannot be read as Parquet after row {number}: {_first_line(error)}",
                "Write the file again; it may be cut short.",
            ) from error


def _batch_values(batch: Any) -> Iterator[Mapping[str, Any] | RowError]:
    """The values of a record batch; where Python cannot hold them all, row by row, so that only bad ones are lost."""
    try:
        yield from batch.to_pylist()
        return
    except ValueError:  # text that is not UTF-8, a date that Python has no type for
        pass
    for index in range(batch.num_rows):
        try:
            value = batch.slice(index, 1).to_pylist()[0]
        except UnicodeDecodeError:
            value = RowError("line", "is not valid UTF-8")
        except ValueError as error:
            value = RowError("line", f"cannot be read: {_first_line(error)}")
        yield value


def _plain_row(value: Mapping[str, Any] | RowError, file: str, number: int) -> Row:
    if isinstance(value, RowError):
        return rejected(file, number, value.problem, "")
    try:
        return Row(file, number, {str(name): json_plain(item, str(name)) for name, item in value.items()})
    except RowError as error:
        return rejected(file, number, error.problem, repr(value))


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def read_saved_dataset(folder: Path, *, split: str) -> Iterator[Row]:
    """One row for each row of a folder written by `datasets.save_to_disk`, memory-mapped.

    `split` chooses from a saved dictionary of splits; a folder with a single data set has none to choose from.

    Raises:
        DataError: the split is not there, or the folder is damaged.
    """
    splits_file = folder / "dataset_dict.json"
    if splits_file.is_file():
        try:
            splits = [str(name) for name in read_json_object(splits_file)["splits"]]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{splits_file}: is damaged: {_first_line(error)}", "Save the data set again.") from error
        if split not in splits:
            raise DataError(f"{folder}: has no split {split!r}", f"Choose one of: {', '.join(splits)}.")
        folder = folder / split
    datasets = _datasets()
    yield from _numbered(lambda: datasets.load_from_disk(str(folder)), str(folder), "Save the data set again.")


def read_hub_dataset(name: str, *, split: str, source: str) -> Iterator[Row]:
    """One row for each row of a data set that `datasets.load_dataset` can stream: a hub id, or a local folder.

    `owner/name#config` chooses a configuration. Code that comes with a data set never runs.

    Raises:
        DataError: the data set cannot be reached, has no such split, or cannot be read to its end.
    """
    path, _, config = name.partition("#")
    datasets = _datasets()
    yield from _numbered(
        lambda: datasets.load_dataset(path, config or None, split=split, streaming=True),
        f"{source}[{split}]",
        "Check the id, the split and the network (HF_HUB_OFFLINE), or download the files and name them instead.",
    )


def _numbered(open_dataset: Any, file: str, remedy: str) -> Iterator[Row]:
    """Open and iterate under one roof: `datasets` reports most problems only when rows are asked for."""
    number = 0
    try:
        rows: Iterable[Mapping[str, Any]] = open_dataset()
        for value in rows:
            number += 1
            yield _plain_row(value, file, number)
    except DataError:
        raise
    except Exception as error:  # loaders raise whatever their file formats and HTTP clients raise
        where = f"after row {number}" if number else "at all"
        raise DataError(f"{file}: cannot be read {where}: {_first_line(error)}", remedy) from error


def _datasets() -> Any:
    # Imported only where it is used: it costs a second, and files need none of it.
    return importlib.import_module("datasets")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(". ")
