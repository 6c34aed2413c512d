"""Records read in blocks, with a state from which reading can resume; used by `generate` and `score`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, Self

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from prefine.data.reading.quarantine import Quarantine
from prefine.data.records.convert import R
from prefine.data.records.stream import ReadCounts, RecordStream, remarks
from prefine.data.row_columns import as_read, renamings
from prefine.errors import RecipeError
from prefine.formatting import plural
from prefine.runs.atomic import JSON
from prefine.runs.row_file import RowFile


class CountedRecords(Generic[R]):
    """An iterator over records that counts and hashes them.

    Attributes:
        count: records so far.
        last: the latest one.
        row: the row of that record, as it will be written.
        size: that row's bytes as JSON.
    """

    def __init__(self, stream: RecordStream[R]) -> None:
        self.count = 0
        self.last: R | None = None
        self.row: dict[str, Any] = {}
        self.size = 0
        self._stream = stream
        self._hash = hashlib.sha256()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> R:
        self.last = next(self._stream)
        self.count += 1
        self.row = as_read(self._stream.row)
        text = json.dumps(self.row).encode()
        self.size = len(text)
        self._hash.update(b"%d %s\n" % (self.place[1], text))
        return self.last

    @property
    def place(self) -> tuple[str, int]:
        """File and line of the latest one."""
        return self._stream.place

    @property
    def counts(self) -> ReadCounts:
        """Counts of the rows read."""
        return self._stream.counts

    @property
    def digest(self) -> str:
        """SHA-256 of all rows so far and their lines."""
        return self._hash.hexdigest()


class _Refused(BaseModel):
    """The value of Quarantine.state."""

    model_config = ConfigDict(strict=True, extra="forbid")
    reasons: dict[str, NonNegativeInt]
    first: dict[str, str]
    bytes: NonNegativeInt


class BlockState(BaseModel):
    """The value of BlockRows.state; a saved one may be damaged."""

    model_config = ConfigDict(strict=True, extra="forbid")
    records: NonNegativeInt
    digest: str
    quarantine: _Refused


class BlockRows(Generic[R]):
    """Rows computed lazily from the records of a stream, in order, in independent blocks.

    Args:
        stream: the records.
        quarantine: receives records that cannot be used.
    """

    state_type: ClassVar[type[BlockState]] = BlockState

    def __init__(self, stream: RecordStream[R], quarantine: Quarantine) -> None:
        self._records = CountedRecords(stream)
        self._quarantine = quarantine
        self._renamed: dict[str, str] = {}

    def begin(self, file: RowFile, settings: Mapping[str, JSON]) -> None:
        """Start a file with the settings that decide its rows, or resume it.

        Raises:
            RecipeError: the settings or records differ from those it was started with.
            CheckpointError: the saved state is damaged.
            DataError: see `go_to`.
        """
        file.require_same(settings)
        if file.done is None:
            return
        try:
            self.state_type.model_validate(file.done)
        except ValidationError:
            raise file.damaged_state() from None
        self.go_to(file.done)

    def state(self) -> dict[str, JSON]:
        """The state between two blocks; see `go_to`."""
        return {
            "records": self._records.count,
            "digest": self._records.digest,
            "quarantine": self._quarantine.state(),
        }

    def go_to(self, state: Mapping[str, Any]) -> None:
        """Continue from a state: the records are read again and must be the same.

        Raises:
            RecipeError: they differ.
            DataError: they cannot be read; the quarantine file has changed.
        """
        with self._quarantine.muted():
            for _ in range(state["records"]):
                if next(self._records, None) is None:
                    break
        if self._records.digest != state["digest"]:
            raise RecipeError(
                f"--resume: the first {plural(state['records'], 'record')} differ from those of the finished rows",
                "Restore the data, or start over without --resume.",
            )
        self._quarantine.go_to(state["quarantine"])

    def _about_rows(self, what: str) -> list[str]:
        """Lines for the user on how rows were read and written, and on those in quarantine."""
        told = remarks(self._records.counts.as_dict()) + renamings(self._renamed)
        if not self._quarantine.total:
            return told
        reasons = "; ".join(
            f"{reason} ({count}, first at {self._quarantine.first[reason]})"
            for reason, count in self._quarantine.reasons.most_common(3)
        )
        where = self._quarantine.path or "not written: name a file with --quarantine"
        return [*told, f"{plural(self._quarantine.total, 'row')} could not be {what}: {reasons} ({where})"]
