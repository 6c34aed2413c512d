"""What is known of each stage of a pipeline, in its folder, and the lock that only one process holds.

FOLDER/
  .pipeline/lock          the process that runs the pipeline
  .pipeline/pipeline.json the name and the file of the pipeline that the folder belongs to
  .pipeline/stages/       a stage's record: NAME.json
  .pipeline/old/          earlier results and attempts of stages: NAME.1/, and its record NAME.1.json; NAME.2/, …
  .pipeline/digests.json  hashes of files, by size and time
  NAME/                   a stage's results
  NAME.kept-1/            an earlier result that has a tag
  report.html             the page of the pipeline
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

import psutil

from prefine.errors import CheckpointError, RecipeError
from prefine.json_reading import JsonError, read_json_object
from prefine.pipeline.digests import KnownDigests
from prefine.recipe.pipeline import Pipeline
from prefine.runs.atomic import storage_errors, sweep_temporaries, write_json

try:
    import fcntl
except ImportError:  # Windows: the process number in the lock decides
    fcntl = None  # type: ignore[assignment]

_CLOCK_S = 2.0  # file systems and processes round their times

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
        forced: whether it began with --force: compared endpoints are then asked again.
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
    forced: bool = False


@dataclass(frozen=True)
class StageAside:
    """An earlier result of a stage, or an attempt that was interrupted or failed, with other inputs.

    Attributes:
        folder: where it is now. record: of the stage then.
    """

    folder: Path
    record: StageRecord

    @property
    def is_result(self) -> bool:
        """Whether it was finished."""
        return self.record.status == "done"


class PipelineRecords:
    """The records of a pipeline's folder. Reading them needs no lock.

    Args:
        folder: of the pipeline; it may not exist.

    Attributes:
        folder: likewise. own: where the records are. stages: one of each. old: what was set aside. digests: of files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.own = folder / ".pipeline"
        self.stages = self.own / "stages"
        self.old = self.own / "old"
        self._owner = self.own / "pipeline.json"
        self.digests = KnownDigests(self.own / "digests.json")

    def read(self, stage: str) -> StageRecord | None:
        """A stage's record; None if there is none, or it is damaged."""
        return _record_in(self._path(stage))

    def known(self) -> list[str]:
        """The stages that have a record, sorted."""
        return sorted(file.stem for file in self.stages.glob("*.json"))

    def write(self, stage: str, record: StageRecord) -> None:
        """Write a stage's record. Raises CheckpointError if the disk is full or not writable."""
        write_json(self._path(stage), asdict(record))

    def earlier(self, stage: str) -> list[StageAside]:
        """What was set aside of a stage, the oldest first."""
        found = {}
        for file in self.old.glob(f"{stage}.*.json"):
            place, record = file.with_suffix(""), _record_in(file)
            number = place.suffix[1:]
            if place.name == f"{stage}.{number}" and number.isdigit() and place.is_dir() and record is not None:
                found[int(number)] = StageAside(place, record)
        return [found[number] for number in sorted(found)]

    def free_place(self, stage: str) -> Path:
        """A place where something can be set aside. Its number is the highest one, as the numbers give the order."""
        numbers = [each.suffix[1:] for each in self.old.glob(f"{stage}.*") if each.stem == stage]
        return self.old / f"{stage}.{1 + max((int(each) for each in numbers if each.isdigit()), default=0)}"

    def write_earlier(self, aside: StageAside) -> None:
        """Write the record of what is about to be set aside. Raises CheckpointError."""
        with storage_errors(self.old):
            self.old.mkdir(exist_ok=True)
        write_json(_record_of(aside.folder), asdict(aside.record))

    def forget_earlier(self, folder: Path) -> None:
        """Delete the record of what is no longer set aside in this folder. Raises CheckpointError."""
        with storage_errors(self.old):
            _record_of(folder).unlink(missing_ok=True)

    def runner(self) -> int | None:
        """The number of the other process of this machine that runs the pipeline now; None if there is none."""
        lock = self.own / "lock"
        try:
            number, host = _holder_in(lock.read_bytes())
            # The number may be that of a later process, after a kill.
            begun = psutil.Process(number).create_time() <= lock.stat().st_mtime + _CLOCK_S
        except (OSError, psutil.Error):
            return None
        return number if begun and number not in (0, os.getpid()) and host == socket.gethostname() else None

    def require_belongs(self, pipeline: Pipeline) -> None:
        """Refuse a folder of another pipeline, whose results would be taken for this one's and deleted.

        A pipeline whose file was renamed or moved keeps its folder.

        Raises:
            RecipeError: the folder belongs to another pipeline.
        """
        try:
            known = read_json_object(self._owner)
        except (OSError, JsonError):
            return
        name, file = known.get("pipeline"), known.get("file")
        if isinstance(file, str) and pipeline.file is not None:
            other = Path(file)
            if other == pipeline.file.resolve() or not other.is_file():
                return
        elif name == pipeline.name:
            return
        raise RecipeError(
            f"folder: {self.folder} holds the results of another pipeline, {file or name}",
            "Set another folder (--set folder=NEW).",
        )

    @property
    def name(self) -> str | None:
        """The name of the pipeline that the folder belongs to; None if that is not known."""
        try:
            name = read_json_object(self._owner).get("pipeline")
        except (OSError, JsonError):
            return None
        return name if isinstance(name, str) else None

    def claim(self, pipeline: Pipeline) -> None:
        """Note which pipeline the folder belongs to. Raises CheckpointError if it cannot be written."""
        file = None if pipeline.file is None else str(pipeline.file.resolve())
        if file is not None or not self._owner.is_file():
            write_json(self._owner, {"pipeline": pipeline.name, "file": file})

    def _path(self, stage: str) -> Path:
        return self.stages / f"{stage}.json"


def _record_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def _record_in(path: Path) -> StageRecord | None:
    try:
        values = read_json_object(path)
        record = StageRecord(**{**values, "others": tuple(values["others"])})
    except (OSError, JsonError, KeyError, TypeError):
        return None
    named = (record.inputs, record.results, record.planned)
    return record if all(isinstance(each, dict) for each in named) else None


def _holder_in(text: bytes) -> tuple[int, str]:
    """The process and machine in a lock; 0 if they are not known."""
    number, _, host = text[:300].decode("utf-8", "replace").strip().partition(" ")
    return (int(number) if number.isdigit() else 0), host


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
            records.stages.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = self._path.open("a+b")
            try:
                self._take(records.folder)
                self._file.truncate(0)
                self._file.write(f"{os.getpid()} {socket.gethostname()}\n".encode())
                self._file.flush()
                for each in (records.own, *(path for path in records.own.iterdir() if path.is_dir())):
                    sweep_temporaries(each)
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
        return _holder_in(self._file.read(300))

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
        with suppress(OSError):
            self._file.truncate(0)  # this process may live on without running the pipeline
        self._file.close()
