"""What is known of each stage of a pipeline, in its folder, and the lock that only one process holds.

FOLDER/
  .pipeline/lock          the process that runs the pipeline
  .pipeline/NAME.json     a stage's record
  .pipeline/digests.json  hashes of files, by size and time
  NAME/                   a stage's results
  report.html             the page of the pipeline
"""

from __future__ import annotations

import os
import socket
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

import psutil

from prefine.errors import CheckpointError
from prefine.json_reading import JsonError, read_json_object
from prefine.pipeline.digests import KnownDigests
from prefine.runs.atomic import storage_errors, sweep_temporaries, write_json

try:
    import fcntl
except ImportError:  # Windows: the process number in the lock decides
    fcntl = None  # type: ignore[assignment]

Status = Literal["running", "failed", "done"]


@dataclass(frozen=True)
class StageRecord:
    """What is known of a stage.

    Attributes:
        status: running also after a kill, or an interruption.
        key: hash of the inputs that it began with.
        inputs: see `stage_inputs`.
        results: hashes of the files that its inputs decide, by path from its folder; {} until it is done.
        others: paths of its further files, which hold times.
        gate: of an evaluation: whether its gate passed; None without one.
        reason: why it failed.
        seconds: that it took, over all attempts.
        planned: what was expected of it, see `predicted`; of a stage that does not train {}.
    """

    status: Status
    key: str
    inputs: dict[str, Any]
    results: dict[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    gate: bool | None = None
    reason: str = ""
    seconds: float = 0.0
    planned: dict[str, float] = field(default_factory=dict)


class PipelineRecords:
    """The records of a pipeline's folder. Reading them needs no lock.

    Args:
        folder: of the pipeline; it may not exist.

    Attributes:
        folder: likewise. own: where the records are. digests: of files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.own = folder / ".pipeline"
        self.digests = KnownDigests(self.own / "digests.json")

    def read(self, stage: str) -> StageRecord | None:
        """A stage's record; None if there is none, or it is damaged."""
        try:
            values = read_json_object(self._path(stage))
            record = StageRecord(**{**values, "others": tuple(values["others"])})
        except (OSError, JsonError, KeyError, TypeError):
            return None
        named = (record.inputs, record.results, record.planned)
        return record if all(isinstance(each, dict) for each in named) else None

    def write(self, stage: str, record: StageRecord) -> None:
        """Write a stage's record. Raises CheckpointError if the disk is full or not writable."""
        write_json(self._path(stage), asdict(record))

    def _path(self, stage: str) -> Path:
        return self.own / f"{stage}.json"


class PipelineLock:
    """The lock of a pipeline's folder, a context manager; made with the folder.

    Args:
        records: of the pipeline.

    Raises:
        CheckpointError: another process runs this pipeline; the folder cannot be written.
    """

    def __init__(self, records: PipelineRecords) -> None:
        self._path = records.own / "lock"
        with storage_errors(records.folder):
            records.own.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = self._path.open("a+b")
            try:
                self._take(records.folder)
                self._file.truncate(0)
                self._file.write(f"{os.getpid()} {socket.gethostname()}\n".encode())
                self._file.flush()
                sweep_temporaries(records.own)
                sweep_temporaries(records.folder)
            except BaseException:
                self._file.close()
                raise

    def _take(self, folder: Path) -> None:
        if fcntl is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                raise self._in_use(folder, self._holder()) from None
            except OSError:  # a network file system without locks
                pass
        holder, host = self._holder()
        if host == socket.gethostname() and holder not in (0, os.getpid()) and psutil.pid_exists(holder):
            raise self._in_use(folder, (holder, host))

    def _holder(self) -> tuple[int, str]:
        """The process and machine in the lock; 0 if they are not known."""
        self._file.seek(0)
        number, _, host = self._file.read(300).decode("utf-8", "replace").strip().partition(" ")
        return (int(number) if number.isdigit() else 0), host

    def _in_use(self, folder: Path, holder: tuple[int, str]) -> CheckpointError:
        number, host = holder
        where = f" on {host}" if host and host != socket.gethostname() else ""
        process = f"process {number}{where}" if number else "another process"
        return CheckpointError(
            f"{folder} is in use by {process}, which runs this pipeline",
            "Wait for it to end, or set another folder (--set folder=NEW).",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
