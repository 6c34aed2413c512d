"""A file of rows while it is written: finished rows survive any end of the process, and a resume continues it.

Rows go to `NAME.partial` beside the file, each flushed to the system at once. `NAME.partial-state` holds the command's
settings and its last complete block. At the end the partial file is renamed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, BinaryIO, Self

from prefine.errors import CheckpointError, RecipeError, Stopped
from prefine.formatting import plural
from prefine.json_reading import read_json_object
from prefine.runs.atomic import JSON, put_in_place, storage_errors, write_json

try:
    import fcntl
except ImportError:  # Windows: without the lock
    fcntl = None  # type: ignore[assignment]

_SECONDS_BETWEEN_SYNCS = 5.0


class RowFile:
    """The file `path`, made of blocks of rows.

    A block is computed together, and its rows are the same whenever they are computed. So a resume starts at the first
    incomplete block, computes it again, and skips those of its rows that are in the file already.

    A context manager. Leaving it early keeps the rows written, if there is at least one; a resume keeps everything.

    Args:
        path: of the finished file.
        resume: continue the existing partial file.

    Attributes:
        partial: path of the partial file.
        rows: in it.
        done: the state saved with the last complete block, in a resume.

    Raises:
        RecipeError: a resume without a partial file, or a partial file without a resume; `path` exists and is not
            empty.
        CheckpointError: the file cannot be written; another process writes it.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        self.path = path
        self.partial = path.with_name(f"{path.name}.partial")
        self.done: dict[str, Any] | None = None
        self.rows = 0
        self._resume = resume
        self._state_path = path.with_name(f"{path.name}.partial-state")
        self._settings: Mapping[str, JSON] = {}
        self._bytes = 0
        self._synced = monotonic()
        with storage_errors(path):
            self._refuse_unsuitable()
            self._file: BinaryIO = self.partial.open("r+b" if resume else "a+b")
        try:
            _lock(self._file, self.partial)
            with storage_errors(path):
                self._begin()
        except BaseException:
            self._file.close()
            raise

    def _refuse_unsuitable(self) -> None:
        there = self.partial.exists()
        if self._resume and not there:
            whole = f" and {self.path} is complete" if self.path.exists() else ""
            raise RecipeError(f"--resume: there is no {self.partial} to continue{whole}", "Leave --resume out.")
        if not self._resume and there and self.partial.stat().st_size:
            raise _holds_rows(self.partial)
        refuse_existing(self.path)

    def _begin(self) -> None:
        """Find the end of the last complete block, of which an interrupted command may have none."""
        if not self._resume:
            if os.fstat(self._file.fileno()).st_size:  # by another process, between the check and the lock
                raise _holds_rows(self.partial)
            return
        state = self._read_state()
        self._settings, self.done = state["settings"], state["done"]
        self.rows, self._bytes = state["rows"], state["bytes"]
        if self.partial.stat().st_size < self._bytes:
            raise self._damaged(f"is shorter than the {self._bytes:,} bytes that were written")
        self._file.seek(self._bytes)

    def _read_state(self) -> dict[str, Any]:
        try:
            state = read_json_object(self._state_path)
            sound = isinstance(state["settings"], dict) and all(
                isinstance(state[name], int) and state[name] >= 0 for name in ("rows", "bytes")
            )
            if sound and (state["done"] is None or isinstance(state["done"], dict)):
                return state
        except (OSError, ValueError, KeyError):
            pass
        raise self.damaged_state()

    def damaged_state(self) -> CheckpointError:
        """The error for a damaged state."""
        return self._damaged(f"has no valid {self._state_path.name} beside it")

    def _damaged(self, how: str) -> CheckpointError:
        return CheckpointError(f"--resume: {self.partial} {how}", "Delete it and start over, without --resume.")

    def setting(self, name: str) -> JSON:
        """A setting of the interrupted command; None if there is none."""
        return self._settings.get(name)

    def require_same(self, settings: Mapping[str, JSON]) -> None:
        """Record the settings that decide the rows; those of a resume must be equal.

        Raises:
            RecipeError: they differ.
        """
        plain: dict[str, JSON] = json.loads(json.dumps(settings))
        if self._resume:
            for name in dict.fromkeys([*self._settings, *plain]):
                before, now = self._settings.get(name), plain.get(name)
                if before != now:
                    raise RecipeError(
                        f"--resume: {name} was {_short(before)} when {self.partial} was started, and is {_short(now)}",
                        "Repeat the first command with --resume, or delete that file to start over.",
                    )
            return
        self._settings = plain
        self._save(None)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row. It is flushed to the system when this returns, so a kill does not lose it."""
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        with storage_errors(self.path):
            if (
                self._file.read(len(line)) != line
            ):  # nothing at the end of the file; before it, rows that are there already
                self._file.seek(self._bytes)
                self._file.truncate()
                self._file.write(line)
                self._file.flush()
                if monotonic() - self._synced > _SECONDS_BETWEEN_SYNCS:
                    self._sync()
        self._bytes += len(line)
        self.rows += 1

    def end_block(self, done: Mapping[str, JSON]) -> None:
        """Finish a block; `done` is the state with which a resume continues after it."""
        with storage_errors(self.path):
            self._sync()
        self._save(done)

    def finish(self) -> None:
        """Finish the file: give it its name.

        Raises:
            RecipeError: a file of that name with content exists by now.
        """
        with storage_errors(self.path):
            refuse_existing(self.path)
            self._file.truncate(self._bytes)
            self._sync()
            self._file.close()  # Windows cannot rename an open file
            put_in_place(self.partial, self.path)
            self._state_path.unlink(missing_ok=True)

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._synced = monotonic()

    def _save(self, done: Mapping[str, JSON] | None) -> None:
        state: dict[str, JSON] = {"settings": self._settings, "rows": self.rows, "bytes": self._bytes, "done": done}
        write_json(self._state_path, state)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # a full disk, which was reported already
            self._file.close()
        if error is None:
            return
        # In a resume, rows of the first block may be in the file although none was computed again.
        if not self.rows and not self._resume:
            for path in (self.partial, self._state_path):
                with suppress(OSError):
                    path.unlink(missing_ok=True)
        elif isinstance(error, KeyboardInterrupt):
            done = f"{plural(self.rows, 'row')} done, in" if self.rows else "the rows done before are kept in"
            raise Stopped(f"interrupted; {done} {self.partial}") from error


def _short(value: JSON) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


def _holds_rows(partial: Path) -> RecipeError:
    return RecipeError(
        f"--out: {partial} holds the rows of an interrupted command",
        "Add --resume to continue it, or delete that file to start over.",
    )


def refuse_existing(path: Path) -> None:
    """Refuse a file with content: it has no mark of its writer, so none is replaced but an empty one (mktemp).

    Raises:
        RecipeError: there is such a file.
    """
    if path.exists() and path.stat().st_size:
        raise RecipeError(
            f"--out: {path} already exists, and a file with content is not replaced",
            "Name another file, or move that one away.",
        )


def _lock(file: BinaryIO, path: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CheckpointError(
            f"{path} is being written by another process", "Wait for it, or name another file."
        ) from None
    except OSError:  # a network file system without locks
        return
