"""A file of rows while it is written: rows that are done survive whatever ends the process, and a resume goes on.

Rows go to `NAME.partial` beside the file, each handed to the system at once. `NAME.partial-state` says which command
writes it and how far its blocks are. At the end the partial file takes the name in one rename.
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
    """The file `path`, made from rows that come in blocks.

    A block is what is computed together; its rows are the same whenever they are computed. A resume therefore begins at
    the first block that was not whole, computes it again, and finds those of its rows that are in the file already.

    A context manager. Leaving it early keeps what was written, if that is at least one row; a resume keeps everything,
    however early it ends.

    Args:
        path: where the rows go in the end.
        resume: go on with the partial file that is there.

    Attributes:
        partial: where the rows go meanwhile.
        rows: how many are in it.
        done: the state that was saved with the last whole block, if this is a resume.

    Raises:
        RecipeError: a resume without a partial file, or a partial file without a resume; `path` is there, not empty.
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
            whole = f" and {self.path} is whole" if self.path.exists() else ""
            raise RecipeError(f"--resume: there is no {self.partial} to go on with{whole}", "Leave --resume out.")
        if not self._resume and there and self.partial.stat().st_size:
            raise _holds_rows(self.partial)
        _refuse_existing(self.path)

    def _begin(self) -> None:
        """Find the end of the last whole block; an interrupted command's first one may not be."""
        if not self._resume:
            if os.fstat(self._file.fileno()).st_size:  # by another process, between the look and the lock
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
        """The error for a state that cannot be understood."""
        return self._damaged(f"has no sound {self._state_path.name} beside it")

    def _damaged(self, how: str) -> CheckpointError:
        return CheckpointError(f"--resume: {self.partial} {how}", "Delete it and begin anew, without --resume.")

    def setting(self, name: str) -> JSON:
        """What an interrupted command had for a setting; None if there is none."""
        return self._settings.get(name)

    def settle(self, settings: Mapping[str, JSON]) -> None:
        """Say what decides the rows; a resume must have the same.

        Raises:
            RecipeError: it has not.
        """
        plain: dict[str, JSON] = json.loads(json.dumps(settings))
        if self._resume:
            for name in dict.fromkeys([*self._settings, *plain]):
                before, now = self._settings.get(name), plain.get(name)
                if before != now:
                    raise RecipeError(
                        f"--resume: {name} was {_short(before)} when {self.partial} was begun, and is {_short(now)}",
                        "Repeat the first command with --resume, or delete that file to begin anew.",
                    )
            return
        self._settings = plain
        self._save(None)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row. It is with the system when this returns: no kill takes it back."""
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        with storage_errors(self.path):
            if self._file.read(len(line)) != line:  # at the end nothing is read; before it rows are there already
                self._file.seek(self._bytes)
                self._file.truncate()
                self._file.write(line)
                self._file.flush()
                if monotonic() - self._synced > _SECONDS_BETWEEN_SYNCS:
                    self._sync()
        self._bytes += len(line)
        self.rows += 1

    def end_block(self, done: Mapping[str, JSON]) -> None:
        """All rows of a block are there; `done` is what a resume needs to go on behind it."""
        with storage_errors(self.path):
            self._sync()
        self._save(done)

    def finish(self) -> None:
        """All rows are there: give the file its name.

        Raises:
            RecipeError: a file of that name with content is there by now.
        """
        with storage_errors(self.path):
            _refuse_existing(self.path)
            self._file.truncate(self._bytes)
            self._sync()
            self._file.close()  # Windows renames no file that is open
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
        with suppress(OSError):  # a full disk, which has been reported
            self._file.close()
        if error is None:
            return
        # On a resume, rows of the first block may be in the file although none has been computed again.
        if not self.rows and not self._resume:
            for path in (self.partial, self._state_path):
                with suppress(OSError):
                    path.unlink(missing_ok=True)
        elif isinstance(error, KeyboardInterrupt):
            done = f"{plural(self.rows, 'row')} done, in" if self.rows else "the rows done before stay in"
            raise Stopped(f"interrupted; {done} {self.partial}") from error


def _short(value: JSON) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


def _holds_rows(partial: Path) -> RecipeError:
    return RecipeError(
        f"--out: {partial} holds the rows of a command that was interrupted",
        "Add --resume to go on with it, or delete that file to begin anew.",
    )


def _refuse_existing(path: Path) -> None:
    """Nothing in a file of rows proves who wrote it, so none is replaced; mktemp's empty one is."""
    if path.exists() and path.stat().st_size:
        raise RecipeError(
            f"--out: {path} is there already, and a file with content is not replaced",
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
