"""Run folders: the paths of a run's files, their contents, and the lock for writing.

runs/NAME/
  .lock               marks the folder as prefine's; locked by the writing process
  manifest.json       recipe, versions, commit, data hashes
  recipe.yaml         the complete recipe
  metrics.jsonl       one JSON object a line, in the order of the steps
  quarantine.jsonl    refused data rows, with reasons
  data/               token stores
  checkpoints/        for resuming (see prefine.training.loop.checkpoint)
  model/              the result
  export/             exports of it (prefine export)
  samples.jsonl  rollouts.jsonl  evaluation.json  heldout-before.json  report.html

A run writes, replaces and deletes files only in an empty folder or one with this mark.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import weakref
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from prefine import __version__
from prefine.errors import CheckpointError
from prefine.json_reading import parse_json
from prefine.runs.atomic import JSON, atomic_write, json_bytes, storage_errors, sweep_temporaries
from prefine.runs.ownership import (
    DATA_NAME,
    LOCK_NAME,
    MARK,
    QUARANTINE_NAME,
    RECIPE_NAME,
    is_ours,
    refuse_additions,
    refuse_foreign,
)

try:
    import fcntl
except ImportError:  # Windows: runs have no lock
    fcntl = None  # type: ignore[assignment]

_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "bitsandbytes")
_GIT_TIMEOUT_S = 5.0


class RunDirectory:
    """The paths of one run. `RunDirectory(path)` only names them; `create` opens a run for writing.

    A context manager: leaving it releases the run's lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = path / "manifest.json"
        self.recipe = path / RECIPE_NAME
        self.metrics = path / "metrics.jsonl"
        self.quarantine = path / QUARANTINE_NAME
        self.data = path / DATA_NAME
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.exports = path / "export"
        self.samples = path / "samples.jsonl"
        self.rollouts = path / "rollouts.jsonl"
        self.evaluation = path / "evaluation.json"
        self.heldout_before = path / "heldout-before.json"
        self.report = path / "report.html"
        self.run_id: str | None = None  # written to checkpoints; set when the manifest is read or started
        self._lock_path = path / LOCK_NAME
        self._lock: BinaryIO | None = None
        self._place: tuple[int, int] | None = None

    @classmethod
    def create(cls, path: Path, resume: bool) -> Self:
        """Open a run for writing: a new one, or with `resume` an existing one. Only one process can at a time.

        Raises:
            CheckpointError: a new run in a folder that is not empty; a resume without a run; another process has the
                run open; a file in the place of a folder; the folder cannot be written.
        """
        run = cls(path)
        with storage_errors(path):
            run._refuse_unsuitable(resume)  # before writing
            path.mkdir(parents=True, exist_ok=True)
            run._take_lock()
        try:
            with storage_errors(path):
                run._refuse_unsuitable(
                    resume
                )  # again: another process may have started and ended a run in the meantime
                run._place = _place_of(path)
                sweep_temporaries(run.path)
                sweep_temporaries(run.checkpoints)
        except BaseException:
            run.close()
            raise
        return run

    def require_here(self) -> None:
        """Raise CheckpointError if the folder that `create` opened was deleted or renamed."""
        try:
            moved = self._place is not None and _place_of(self.path) != self._place
        except OSError:
            moved = True
        if moved:
            raise CheckpointError(
                f"{self.path} was deleted or renamed while the run was going, and nothing is saved elsewhere",
                "Restore the folder under that name and add --resume, or start a new run.",
            )

    @property
    def holds_run(self) -> bool:
        """Whether a run was started here: it has a manifest."""
        return self.manifest.exists()

    def close(self) -> None:
        """Release the lock. The system does the same for a killed process."""
        if self._lock is not None:
            if fcntl is not None:
                fcntl.flock(self._lock, fcntl.LOCK_UN)  # also for copies of the descriptor in other processes
            self._forget_lock()

    def _forget_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        _locked.discard(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _refuse_unsuitable(self, resume: bool) -> None:
        if not is_ours(self.path):
            refuse_foreign(self.path, resume)
            return
        if not resume and self.holds_run:
            raise CheckpointError(
                f"{self.path} already holds a run", "Add --resume to continue it, or choose another name."
            )
        self._refuse_misplaced()
        if not self.holds_run:
            refuse_additions(self.path)

    def _refuse_misplaced(self) -> None:
        """Refuse a folder in the place of a file, or a file in the place of a folder."""
        folders = (self.data, self.checkpoints, self.model, self.exports)
        for path in (*folders, *(value for value in vars(self).values() if isinstance(value, Path))):
            wanted = path in folders or path == self.path
            if path.exists() and path.is_dir() != wanted:
                kinds = ("a file", "a folder") if wanted else ("a folder", "a file")
                raise CheckpointError(f"{path} is {kinds[0]}, not {kinds[1]}", "Move it away.")

    def _take_lock(self) -> None:
        # Never removed: removing a lock file would let two processes lock two files of one name.
        lock = self._lock_path.open("ab")
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise CheckpointError(
                f"{self.path} is in use by another process", "Wait for it to end, or choose another name."
            ) from None
        except OSError:  # a network file system without locks: no lock, as on Windows
            pass
        if not lock.tell():
            lock.write(MARK)
            lock.flush()
        self._lock = lock
        _locked.add(self)


# Runs locked by this process.
_locked: weakref.WeakSet[RunDirectory] = weakref.WeakSet()


def _leave_locks() -> None:
    """In a forked copy: release its descriptors, so that it does not hold the lock after its parent's end."""
    for run in list(_locked):
        run._forget_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_locks)


def _place_of(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def run_provenance(command: Sequence[str]) -> dict[str, JSON]:
    """The provenance of a run for its manifest: versions, machine, commit, command, UTC time.

    Imports no library, as a manifest must cost milliseconds. A missing library is null, as is the commit outside a git
    repository; a commit ending in "-dirty" had uncommitted changes.
    """
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "git_commit": _git_commit(),
        "prefine": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: _installed_version(name) for name in _LIBRARIES},
    }


def _installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    try:
        found = subprocess.run(  # noqa: S603 - a fixed command, no shell
            [git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            check=True,
            encoding="utf-8",
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_GIT_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


class MetricsLog:
    """Appends to a metrics.jsonl. Each line is flushed to the system at once, so killing the process loses none.

    NaN and infinities are written as null. A line truncated by a power cut is dropped on opening.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = self._open()

    def append(self, row: Mapping[str, JSON]) -> None:
        """Write one line. Raises CheckpointError, and removes a partial line, if the disk is full."""
        line = json_bytes(row)
        rest = memoryview(line)
        handle = self._file.fileno()
        end = os.fstat(handle).st_size
        try:
            with storage_errors(self._path):
                while rest:
                    rest = rest[os.write(handle, rest) :]
        except BaseException:
            os.ftruncate(handle, end)
            raise
        self._note(row, line)

    def sync(self) -> None:
        """Flush to the disk, so that a power cut loses nothing; called before saving a checkpoint."""
        with storage_errors(self._path):
            os.fsync(self._file.fileno())

    def truncate_after(self, step: int) -> None:
        """Drop every line whose "step" is greater than `step`; a resumed run writes those again."""
        self._file.close()  # Windows cannot replace an open file
        drop_rows_after(self._path, step)
        self._file = self._open()

    def seal(self, step: int) -> dict[str, JSON]:
        """A checkpoint's record of the lines up to a step, to detect later whether they were lost or changed.

        Number and hash of the lines up to the step, except those of guards, and the complete held-out rows.
        """
        if self._last_step <= step:
            return {"lines": self._lines, "sha256": self._hash.hexdigest(), "heldout": list(self._heldout)}
        kept = [row for row in read_metrics(self._path) if step_of(row, step) <= step]
        hashed = [json_bytes(row) for row in kept if row.get("kind") != "guard"]
        heldout = [row for row in kept if row.get("kind") == "heldout"]
        return {"lines": len(hashed), "sha256": _hash_of(hashed), "heldout": heldout}

    def mend(self, seal: Mapping[str, Any]) -> bool:
        """Restore held-out rows if lines of a checkpoint's record were lost or changed; returns whether they were.

        Lines written after the checkpoint are kept.
        """
        rows = read_metrics(self._path)
        known = [json_bytes(row) for row in rows if row.get("kind") != "guard"][: seal["lines"]]
        if len(known) == seal["lines"] and _hash_of(known) == seal["sha256"]:
            return False
        rows = [row for row in rows if row.get("kind") != "heldout"]
        merged = sorted([*rows, *seal["heldout"]], key=lambda row: step_of(row, 0))
        self._file.close()
        with atomic_write(self._path) as temporary:
            temporary.write_bytes(b"".join(map(json_bytes, merged)))
        self._file = self._open()
        return True

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> BinaryIO:
        with storage_errors(self._path):
            file = self._path.open("ab", buffering=0)
            os.ftruncate(file.fileno(), sum(map(len, _whole_lines(self._path))))
        self._hash, self._lines, self._last_step = hashlib.sha256(), 0, -1
        self._heldout: list[Mapping[str, JSON]] = []
        for row in read_metrics(self._path):
            self._note(row, json_bytes(row))
        return file

    def _note(self, row: Mapping[str, Any], line: bytes) -> None:
        if row.get("kind") == "guard":
            return
        self._hash.update(line)
        self._lines += 1
        self._last_step = max(self._last_step, step_of(row, -1))
        if row.get("kind") == "heldout":
            self._heldout.append(row)


def step_of(row: Mapping[str, Any], otherwise: int) -> int:
    """The "step" of a row; `otherwise` if it is not a whole number."""
    step = row.get("step")
    return step if isinstance(step, int) else otherwise


def _hash_of(lines: Sequence[bytes]) -> str:
    return hashlib.sha256(b"".join(lines)).hexdigest()


def drop_rows_after(path: Path, step: int) -> None:
    """Drop every line of a file like metrics.jsonl whose "step" is greater than `step`, if the file exists."""
    if not path.exists():
        return
    kept = [row for row in read_metrics(path) if step_of(row, step) <= step]
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"".join(map(json_bytes, kept)))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, oldest first; empty if there is no file. A truncated last line is ignored.

    Raises:
        CheckpointError: it cannot be read, or a line before the last is not a JSON object.
    """
    rows: list[dict[str, Any]] = []
    try:
        lines = _whole_lines(path) if path.exists() else []
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}", "Move it away, or restore the file."
        ) from None
    for number, line in enumerate(lines, start=1):
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise CheckpointError(
                f"{path}, line {number} is not a JSON object", "Remove that line, or restore the file."
            )
        rows.append(row)
    return rows


def rows_of_kind(path: Path, kind: str) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl that have this "kind" and a "step". Raises CheckpointError as `read_metrics` does."""
    return [row for row in read_metrics(path) if row.get("kind") == kind and isinstance(row.get("step"), int)]


def _whole_lines(path: Path) -> list[bytes]:
    lines = path.read_bytes().splitlines(keepends=True)
    # After a power cut the end may be truncated, or filled with NULs up to a block's end.
    while lines and (not lines[-1].endswith(b"\n") or b"\0" in lines[-1]):
        lines.pop()
    return lines
