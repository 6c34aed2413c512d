"""The state of a run while it is going, read from its files alone.

Files may be missing, replaced or half written at any moment: lines that cannot be read are skipped, and a file that
cannot be read at all counts as it was when it last could.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prefine.errors import CheckpointError
from prefine.json_reading import JsonError, parse_json, read_json_object
from prefine.report.facts import RunFacts, count, number, text
from prefine.runs.directory import RunDirectory
from prefine.runs.ownership import LOCK_NAME, is_ours

_LOCKS = Path("/proc/locks")
_SILENCE_S = 120.0
_RECENT_STEPS = 30
_COMPARED_BYTES = 4096


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment.

    Attributes:
        path: its folder.
        started: whether it has a manifest.
        alive: whether a process of this machine has the run open; None if the system does not tell.
        silent_s: seconds since a file of the run last changed.
        seen_step_s: seconds of a step, by the steps that came while watching; None before two looks with a new step.
    """

    path: Path
    facts: RunFacts
    started: bool
    alive: bool | None
    silent_s: float
    seen_step_s: float | None = None

    @property
    def status(self) -> str:
        """running, finished, stopped, failed, or starting."""
        return text(self.facts.manifest.get("status")) or ("unknown" if self.started else "starting")

    @property
    def lost(self) -> bool:
        """Whether the run says that it is going, but no process has it open and nothing has happened for a while."""
        return self.status in ("running", "starting") and self.alive is False and self.silent_s > _SILENCE_S

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.status not in ("running", "starting") or self.lost

    @property
    def step(self) -> int:
        """The last step with metrics; 0 before the first."""
        return max((count(row.get("step")) or 0 for row in self.facts.train), default=0)

    @property
    def total(self) -> int | None:
        """The steps of the whole run; None if unknown."""
        return count(self.facts.manifest.get("total_steps")) or None

    @property
    def seconds_left(self) -> float | None:
        """Seconds of the steps to come. None if unknown.

        By the steps that came while watching, which includes evaluations and checkpoints; else by what recent steps
        recorded, which does not.
        """
        recent = [value for row in self.facts.train[-_RECENT_STEPS:] if (value := number(row.get("seconds")))]
        recorded = sum(recent) / len(recent) if recent else None
        each = recorded if self.seen_step_s is None else self.seen_step_s
        if self.total is None or each is None or self.ended:
            return None
        return max(0.0, (self.total - self.step) * each - min(self.silent_s, each))


@dataclass
class RunFiles:
    """Reads a run again and again: a file that has not changed is not read, of one that has grown only what is new.

    Attributes:
        path: the run's folder.
        clock: seconds since the epoch, as files' times are.
    """

    path: Path
    clock: Callable[[], float] = time.time
    _kept: dict[Path, tuple[tuple[int, int, int], Any]] = field(default_factory=dict)
    _lines: dict[Path, _Lines] = field(default_factory=dict)
    _changed: tuple[float, float] | None = None  # the latest change, and when it was first seen
    _moments: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_RECENT_STEPS))

    def require_run(self) -> None:
        """Raise CheckpointError if the folder is not that of a run that has been started."""
        run = RunDirectory(self.path)
        if not (run.holds_run or run.metrics.exists() or (self.path.is_dir() and is_ours(self.path))):
            raise CheckpointError(f"{self.path} holds no run to watch", "Name a run's folder, for example runs/dpo.")

    def read(self) -> Snapshot:
        """The run's state now."""
        run = RunDirectory(self.path)
        metrics = sorted(self._rows(run.metrics), key=lambda row: number(row.get("step")) or 0)
        facts = RunFacts(
            name=self.path.resolve().name,
            manifest=self._object(run.manifest),
            train=[row for row in metrics if row.get("kind") == "train"],
            heldout=[row for row in metrics if row.get("kind") == "heldout"],
            evaluation=self._object(run.evaluation),
            samples=self._rows(run.samples),
            guard_events=[row for row in metrics if row.get("kind") == "guard"],
            rollouts=self._rows(run.rollouts),
        )
        files = (run.manifest, run.metrics, run.samples, run.rollouts, run.checkpoints, self.path / LOCK_NAME)
        silent = self._silent_s(max((found.st_mtime for file in files if (found := _stat(file))), default=self.clock()))
        now = Snapshot(self.path, facts, bool(facts.manifest), is_locked(self.path / LOCK_NAME), silent)
        return replace(now, seen_step_s=self._step_s(now.step))

    def _silent_s(self, latest: float) -> float:
        """Seconds since the latest change, at least those since it was seen: a shared disk's clock may be ahead."""
        now = self.clock()
        if self._changed is None or self._changed[0] != latest:
            self._changed = (latest, now)
        return max(0.0, now - latest, now - self._changed[1])

    def _step_s(self, step: int) -> float | None:
        """Seconds of a step since the oldest kept look. The time between the first look and its next step is no
        step's.
        """
        if self._moments and step < self._moments[-1][1]:  # a guard rolled the run back
            self._moments.clear()
        if not self._moments or step > self._moments[-1][1]:
            self._moments.append((self.clock(), step))
        if len(self._moments) < 3:
            return None
        (began, first), (latest, last) = self._moments[1], self._moments[-1]
        return (latest - began) / (last - first)

    def _object(self, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = self._cached(path, {}, read_json_object)
        return found

    def _rows(self, path: Path) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._cached(path, [], self._read_rows)
        return found

    def _read_rows(self, path: Path) -> list[dict[str, Any]]:
        self._lines[path] = _read_lines(path, self._lines.get(path) or _Lines())
        return self._lines[path].rows

    def _cached(self, path: Path, missing: Any, read: Callable[[Path], Any]) -> Any:
        known, value = self._kept.get(path, (None, missing))
        place = _stat(path)
        if place is None:
            return value
        state = (place.st_ino, place.st_size, place.st_mtime_ns)
        if state != known:
            try:
                value = read(path)
            except (OSError, JsonError):
                return value
            self._kept[path] = (state, value)
        return value


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


@dataclass(frozen=True)
class _Lines:
    """The rows of a file's whole lines so far.

    Attributes:
        read: bytes of these lines. end: the last of them, which show whether the file still has them.
    """

    read: int = 0
    end: bytes = b""
    rows: list[dict[str, Any]] = field(default_factory=list)


def _read_lines(path: Path, known: _Lines) -> _Lines:
    """The rows of a file's whole lines. What is known is not read again, unless a roll-back or a resume replaced it."""
    with path.open("rb") as file:
        file.seek(known.read - len(known.end))
        if file.read(len(known.end)) != known.end:
            known = _Lines()
            file.seek(0)
        new = file.read()
    new = new[: new.rfind(b"\n") + 1]
    rows = []
    for line in new.splitlines():
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return _Lines(known.read + len(new), (known.end + new)[-_COMPARED_BYTES:], [*known.rows, *rows])


def is_locked(path: Path, locks: Path = _LOCKS) -> bool | None:
    """Whether a process of this machine holds a lock on a file. Takes no lock itself, which a run would take for
    another run.

    None if the system does not list locks.

    Args:
        locks: Linux' list (proc_locks(5)): "1: FLOCK ADVISORY WRITE 28548 fe:00:3787197 0 EOF".
    """
    place = _stat(path)
    try:
        lines = locks.read_text().splitlines()
    except OSError:
        return None
    if place is None:
        return False
    held = {words[5].rpartition(":")[2] for line in lines if len(words := line.split()) == 8 and words[1] == "FLOCK"}
    return str(place.st_ino) in held  # without the device, whose number some file systems give otherwise
