"""The folder of a comparison: its parts, which a second call with the same settings goes on with.

NAME/
  .lock          marks the folder as a comparison's; locked by the process that writes it
  question.json  what was compared: the settings that decide the answers, the chosen number type, seconds of the parts
  parts/         NAME.json: a part's settings; NAME.jsonl: its rows (NAME.jsonl.partial while it is computed);
                 judgements.json: what `prefine judge` added
  replies.db     replies of endpoints that are compared; judge.db: those of judges
  answers.jsonl  regression.jsonl  report.json  report.html
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from prefine.errors import CheckpointError, RecipeError
from prefine.json_reading import JsonError, parse_json, read_json_object
from prefine.runs.atomic import JSON, atomic_write, json_bytes, remove, storage_errors, sweep_temporaries, write_json
from prefine.runs.row_file import RowFile

try:
    import fcntl
except ImportError:  # Windows: without the lock
    fcntl = None  # type: ignore[assignment]

MARK = b"prefine evaluation"
"""First line of the lock file."""

REPLIES, JUDGE_REPLIES, JUDGEMENTS = "replies.db", "judge.db", "parts/judgements.json"
"""What was paid for or judged by people, by path from the folder."""

Progress = Callable[[str, int, int], None]
"""Called with the name of the work, how much of it is done, and how much there is."""

_HASH = re.compile(r"[0-9a-f]{64}")
_NEW_FOLDER = "Name a new folder with --out, or begin anew with --force."


class EvaluationFolder:
    """A comparison's folder, open for writing. A context manager.

    Args:
        path: of the folder; created if there is none.
        force: begin anew, whatever comparison the folder holds.
        renew: begin anew if the folder holds a comparison of other settings, instead of refusing it. Replies of
            endpoints stay: they are found by what was asked.

    Attributes:
        path: the folder. answers, regression, report, page: its results. parts: the folder of the parts.
            judgements: what `prefine judge` added.

    Raises:
        CheckpointError: another process writes it, it holds other files, or it cannot be written.
    """

    def __init__(self, path: Path, force: bool = False, renew: bool = False) -> None:
        self.path = path
        self.answers = path / "answers.jsonl"
        self.regression = path / "regression.jsonl"
        self.report = path / "report.json"
        self.page = path / "report.html"
        self.replies = path / REPLIES
        self.judge_replies = path / JUDGE_REPLIES
        self.parts = path / "parts"
        self.judgements = path / JUDGEMENTS
        self._question = path / "question.json"
        self._force, self._renew = force, renew
        self._lock = self._taken_lock()
        self._asked: dict[str, Any] = {}

    def _taken_lock(self) -> BinaryIO:
        lock = self.path / ".lock"
        with storage_errors(self.path):
            others = sorted(each.name for each in self.path.iterdir()) if self.path.is_dir() else []
            if others and not _is_marked(lock):
                raise CheckpointError(
                    f"{self.path} holds other files ({', '.join(others[:3])})", "Name a new folder with --out."
                )
            self.path.mkdir(parents=True, exist_ok=True)
            file = lock.open("ab")
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise CheckpointError(
                    f"{self.path} is being written by another process",
                    "Wait for it, or name another folder with --out.",
                ) from None
            except OSError:  # a network file system without locks
                pass
            if not file.tell():
                file.write(MARK)
                file.flush()
            self.parts.mkdir(exist_ok=True)  # after the mark: a folder without one is taken for somebody else's
            sweep_temporaries(self.path)
            sweep_temporaries(self.parts)
        return file

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()

    def begin(self, settings: Mapping[str, JSON], remedy: str = _NEW_FOLDER) -> None:
        """Note what is compared; what the folder holds already must be of the same settings.

        Args:
            remedy: what to do if it is of others.

        Raises:
            RecipeError: it is of others, and neither `force` nor `renew` was given.
            CheckpointError: question.json is damaged.
        """
        plain: dict[str, Any] = json.loads(json.dumps(settings))
        held = self._held_question()
        if held is not None:
            before = held.get("settings", {})
            differs = [name for name in dict.fromkeys([*before, *plain]) if before.get(name) != plain.get(name)]
            if not differs and not self._force:
                self._asked = held
                return
            if not (self._force or self._renew):
                name = differs[0]
                change = _difference(name, before.get(name), plain.get(name))
                raise RecipeError(f"{self.path} holds a comparison with other settings: {change}", remedy)
            self._clear()
        self._asked = {"settings": plain}
        write_json(self._question, self._asked)

    def _held_question(self) -> dict[str, Any] | None:
        if not self._question.exists():
            return None
        try:
            return read_json_object(self._question)
        except (OSError, JsonError) as error:
            if self._force or self._renew:
                return {}
            raise CheckpointError(f"{self._question} is damaged ({error})", _NEW_FOLDER) from None

    def _clear(self) -> None:
        """Drop everything but the replies of judges, which were paid for and are found by what was asked, and their
        verdicts, which hold for the same answers only. With `force` the replies of compared endpoints are dropped, too,
        as the model behind one may have changed.
        """
        parts = [each for each in self.parts.iterdir() if each != self.judgements]
        for path in (
            self.answers,
            self.regression,
            self.report,
            self.page,
            *(self.path.glob(f"{self.replies.name}*") if self._force else ()),
            *parts,
        ):
            remove(path)

    @property
    def dtype(self) -> str | None:
        """The number type that the first call chose; later ones compute in the same one."""
        found = self._asked.get("dtype")
        return found if isinstance(found, str) else None

    def note_dtype(self, dtype: str) -> None:
        """Record the chosen number type."""
        if self._asked.get("dtype") != dtype:
            self._asked["dtype"] = dtype
            write_json(self._question, self._asked)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds that each part took, over all calls."""
        found = self._asked.get("seconds")
        return found if isinstance(found, dict) else {}

    def add_seconds(self, part: str, seconds: float) -> None:
        """Count time of a part."""
        self._asked["seconds"] = {**self.seconds, part: round(self.seconds.get(part, 0.0) + seconds, 3)}
        write_json(self._question, self._asked)

    def rows(
        self,
        part: str,
        settings: Mapping[str, JSON],
        items: int,
        block: int,
        compute: Callable[[range], Iterable[Mapping[str, Any]]],
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[dict[str, Any]]:
        """The rows of a part, one for each item: read if they are there, else computed from where they end.

        A kill loses at most the block that was being computed.

        Args:
            part: its name.
            settings: everything that decides the rows; a part of other settings is computed anew.
            items: how many there are. block: how many are computed together.
            compute: the rows of some items, in order; the same whenever it is called.
            progress: called with the number of finished items.
        """
        path, noted = self.parts / f"{part}.jsonl", self.parts / f"{part}.json"
        wanted: dict[str, Any] = json.loads(json.dumps({**settings, "items": items, "block": block}))
        partial = path.with_name(f"{path.name}.partial")
        if _read_or_none(noted) != wanted:
            for stale in (path, partial, path.with_name(f"{path.name}.partial-state")):
                remove(stale)
            write_json(noted, wanted)
        if path.exists():
            return read_rows(path)
        with _row_file(path, partial) as file:
            file.require_same(wanted)
            start = 0 if file.done is None else int(file.done["items"])
            progress(start)
            for begin in range(start, items, block):
                end = min(begin + block, items)
                for row in compute(range(begin, end)):
                    file.append(row)
                    progress(file.rows)
                file.end_block({"items": end})
            file.finish()
        return read_rows(path)

    def is_complete(self, part: str) -> bool:
        """Whether a part has all of its rows."""
        return (self.parts / f"{part}.jsonl").exists()

    def forget(self, part: str) -> None:
        """Drop a part, so that the next call computes it again."""
        remove(self.parts / f"{part}.jsonl")

    def write_rows(self, path: Path, rows: Iterable[Mapping[str, JSON]]) -> None:
        """Write a result of rows."""
        with atomic_write(path) as temporary:
            temporary.write_bytes(b"".join(map(json_bytes, rows)))


def _row_file(path: Path, partial: Path) -> RowFile:
    """The file of a part, continued; from its beginning if what was written of it is damaged."""
    if partial.exists() and partial.stat().st_size > 0:
        with suppress(CheckpointError):
            return RowFile(path, resume=True)
        for stale in (partial, path.with_name(f"{path.name}.partial-state")):
            remove(stale)
    return RowFile(path, resume=False)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a finished part or of an answers.jsonl.

    Raises:
        CheckpointError: a line is not a JSON object.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = parse_json(line)
        except JsonError:
            row = None
        if not isinstance(row, dict):
            raise CheckpointError(f"{path}, line {number} is not a JSON object", f"Delete {path}; it is made again.")
        rows.append(row)
    return rows


def _read_or_none(path: Path) -> dict[str, Any] | None:
    try:
        return read_json_object(path)
    except (OSError, JsonError):
        return None


def _is_marked(lock: Path) -> bool:
    try:
        return lock.read_bytes() in (b"", MARK)
    except OSError:
        return False


def _difference(name: str, was: Any, now: Any) -> str:
    """What differs; hashes of files and prompts say nothing to a reader."""
    if _HASH.search(json.dumps([was, now])):
        return f"the {name.replace('_', ' ')} {'differ' if name.endswith('s') else 'differs'}"
    return f"{name} was {_short(was)} and is {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"
