"""Token trees on disk: an Arrow file, memory-mapped, so that a dataset may be larger than memory.

Columns: prompt list<int32>, answers list<list<int32>>, supervised list<list<bool>> (null where all of an answer
counts), record large_string (the record's JSON, for reports).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.ipc

from prefine.data.tokens.trees import TokenTree
from prefine.errors import DataError
from prefine.runs.atomic import atomic_write

_ROWS_PER_BLOCK = 256
_IDS = pa.list_(pa.int32())
_RECORD = pa.large_string()  # a block of the longest rows is over 2 GiB
_SCHEMA = pa.schema(
    [
        ("prompt", _IDS),
        ("answers", pa.list_(_IDS)),
        ("supervised", pa.list_(pa.list_(pa.bool_()))),
        ("record", _RECORD),
    ]
)


@dataclass
class FitCounts:
    """Counts of records at the length limit.

    Attributes:
        records: all except those that the template refuses.
        rows: kept records.
        rows_cut: rows that were cut (see prefine.data.tokens.fitting).
        turns_dropped, texts_cut: turns dropped from them, and user turns shortened.
        turns_not_learned: turns that should be learned but are context, as the template changes them once later turns
            follow.
        longest_row_tokens: prompt and answers together.
    """

    records: int = 0
    rows: int = 0
    dropped_too_long: int = 0
    dropped_identical: int = 0
    dropped_unusable: int = 0
    rows_cut: int = 0
    turns_dropped: int = 0
    texts_cut: int = 0
    turns_not_learned: int = 0
    longest_row_tokens: int = 0

    @property
    def dropped(self) -> int:
        """Records left out."""
        return self.dropped_too_long + self.dropped_identical + self.dropped_unusable


class TokenStore(Sequence[TokenTree]):
    """Reads what StoreWriter wrote; indexing gives a TokenTree whose `row` is its index."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with _readable(path):
            self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
            if self._reader.schema != _SCHEMA:
                raise pa.ArrowInvalid("it has other columns")
            blocks = self._reader.num_record_batches
            last: int = self._reader.get_batch(blocks - 1).num_rows if blocks else 0
        self._rows: int = max(0, blocks - 1) * _ROWS_PER_BLOCK + last

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: Any) -> Any:
        place = range(self._rows)[index]
        if isinstance(place, range):
            return [self[i] for i in place]
        row = self._row(place)
        return TokenTree(row["prompt"], tuple(row["answers"]), tuple(row["supervised"]), place)

    def record_json(self, index: int) -> str:
        """The record's JSON, as `model_dump_json` wrote it."""
        text: str = self._row(range(self._rows)[index])["record"]
        return text

    def _row(self, index: int) -> dict[str, Any]:
        with _readable(self._path):
            block = self._reader.get_batch(index // _ROWS_PER_BLOCK)
            row: dict[str, Any] = block.slice(index % _ROWS_PER_BLOCK, 1).to_pylist()[0]
        return row


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn pyarrow's errors on a damaged file into a DataError."""
    try:
        yield
    except (OSError, pa.ArrowException, ValueError, IndexError) as error:
        raise DataError(
            f"{path}: is not a token store ({error})", f"Delete the folder {path.parent}; --resume makes it again."
        ) from error


class StoreWriter:
    """Writes rows in order, in bounded memory. A context manager: after an exception there is no file.

    Attributes:
        digest: running hash of all token ids and masks, on which log-probabilities of these rows depend.
    """

    def __init__(self, path: Path) -> None:
        self.digest = hashlib.sha256()
        self.rows = 0
        self._place = atomic_write(path)
        self._block: list[tuple[TokenTree, str]] = []

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            self._sink = pa.ipc.new_file(str(opened.enter_context(self._place)), _SCHEMA)
            opened.push(self._finish)
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.__exit__(kind, error, trace)

    def _finish(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._flush()
            self._sink.close()
        else:  # the file is removed anyway, so an error on its last bytes does not matter
            with suppress(OSError):
                self._sink.close()

    def add(self, tree: TokenTree, record_json: str) -> None:
        """Append a row."""
        self.digest.update(repr((list(tree.prompt), tree.answers, tree.supervised)).encode())
        self.rows += 1
        self._block.append((tree, record_json))
        if len(self._block) == _ROWS_PER_BLOCK:
            self._flush()

    def _flush(self) -> None:
        if self._block:
            self._sink.write_batch(_record_batch(self._block))
            self._block = []


def _record_batch(block: list[tuple[TokenTree, str]]) -> pa.RecordBatch:
    return pa.record_batch(
        [
            pa.array([list(tree.prompt) for tree, _ in block], type=_IDS),
            pa.array([[list(answer) for answer in tree.answers] for tree, _ in block], type=pa.list_(_IDS)),
            pa.array(
                [[None if mask is None else list(mask) for mask in tree.supervised] for tree, _ in block],
                type=pa.list_(pa.list_(pa.bool_())),
            ),
            pa.array([record for _, record in block], type=_RECORD),
        ],
        schema=_SCHEMA,
    )
