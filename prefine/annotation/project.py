"""A project of human judgement in one file, `project.db`: what the page, the commands and the statistics use."""

from __future__ import annotations

import hashlib
import math
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self, get_args

from prefine.annotation.assignments import give_back, lease_of, next_task
from prefine.annotation.database import PROJECT_FILE, has_settings, insert_settings, read_settings, write_settings
from prefine.annotation.items import insert_items, is_encodable, order_items, read_item, read_items
from prefine.annotation.reading import read_judgements, read_progress, read_votes
from prefine.annotation.records import (
    AnnotationItem,
    Ballot,
    CastVote,
    HumanJudgement,
    JudgedAnswer,
    Kind,
    Order,
    ProjectProgress,
    ProjectSettings,
    Task,
)
from prefine.annotation.votes import undo_vote, write_vote
from prefine.errors import DataError
from prefine.runs.atomic import require_writable

_LONGEST_NAME = 60
_CRITERION = re.compile(r"[^\W_][\w -]{0,39}")
_MOST_CRITERIA = 20


class ProjectReader:
    """A project that is read; nothing is written into the file. Other processes may write it meanwhile.

    Each method sees the project as it is when it is called.

    Raises:
        DataError: there is none at `path`, it is another file, or a later release wrote it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._reading() as connection:
            read_settings(connection)

    @property
    def settings(self) -> ProjectSettings:
        """The project's settings, as they are now."""
        with self._reading() as connection:
            return read_settings(connection)

    def item(self, number: int) -> AnnotationItem:
        """An item by its number.

        Raises:
            DataError: there is none.
        """
        with self._reading() as connection:
            return read_item(connection, number)

    def items(self) -> Iterator[AnnotationItem]:
        """All items in the order of the import."""
        with self._reading() as connection:
            yield from read_items(connection)

    def votes(self, *, undone: bool = False) -> Iterator[CastVote]:
        """Votes in the order of writing; with `undone`, also those taken back."""
        with self._reading() as connection:
            yield from read_votes(connection, undone=undone)

    def judgements(self) -> list[HumanJudgement]:
        """What the current votes say, in the order of writing. Repeats are included and marked."""
        with self._reading() as connection:
            return list(read_judgements(connection))

    def votes_with_items(self) -> Iterator[tuple[CastVote, AnnotationItem]]:
        """Current votes in the order of writing, each with its item; all as they are at one moment."""
        with self._reading() as connection:
            for vote in read_votes(connection):
                yield vote, read_item(connection, vote.item)

    def standing(self, annotator: str) -> tuple[bool, int]:
        """Whether an annotator has paused, and how many current votes they have; it takes a look at one row.

        Raises:
            DataError: there is no such annotator.
        """
        with self._reading() as connection:
            who, paused = _annotator(connection, annotator)
            (done,) = connection.execute("SELECT done FROM annotators WHERE number = ?", (who,)).fetchone()
            return paused, done

    def progress(self) -> ProjectProgress:
        """How far the project and each annotator are."""
        with self._reading() as connection:
            return read_progress(connection, read_settings(connection).overlap)

    def shown(self, annotator: str, token: str) -> tuple[JudgedAnswer, ...]:
        """The answers of the annotator's open task in the order shown; empty if its token is another.

        Raises:
            DataError: there is no such annotator.
        """
        with self._reading() as connection:
            who, _ = _annotator(connection, annotator)
            lease = lease_of(connection, who)
            if lease is None or lease.token != token:
                return ()
            answers = {each.id: each for each in read_item(connection, lease.item).answers}
            return tuple(answers[each] for each in lease.shown)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with PROJECT_FILE.opened_for_reading(self.path) as connection:
            yield connection


class Project(ProjectReader):
    """An open project. A context manager; threads may use it at once, and several processes may have the file open.

    Every method may raise DataError if the file is damaged or locked for long, or the disk is full. A vote, an undo, an
    item or an annotator is on the disk when the method returns.

    Raises:
        DataError: there is none at `path`, it is another file, or a later release wrote it.
        CheckpointError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        PROJECT_FILE.require(path)
        self._lock = threading.Lock()
        self._connection = PROJECT_FILE.open_for_writing(path)
        try:
            super().__init__(path)
        except BaseException:
            self._connection.close()
            raise

    @classmethod
    def create(cls, path: Path, settings: ProjectSettings) -> Self:
        """Make a project.

        Raises:
            DataError: a file of that name exists; a setting is refused.
            CheckpointError: it cannot be written.
        """
        require_settings(settings)
        require_writable(path)
        exists = DataError(f"{path} exists already", "Go on with it (prefine annotate open), or choose another name.")
        if is_begun(path):
            raise exists

        def begin(connection: sqlite3.Connection) -> None:
            if has_settings(connection):  # another process was faster
                raise exists
            insert_settings(connection, settings)

        PROJECT_FILE.open_for_writing(path, begin).close()
        return cls(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Methods that write fail afterwards."""
        with self._lock:
            self._connection.close()

    def add_items(self, items: Iterable[AnnotationItem]) -> int:
        """Add items; all are added, or none. Returns how many; one that is there already is not added again.

        Args:
            items: `id` of each is ignored, an empty name becomes its number, and an answer with id "" gets one.

        Raises:
            DataError: an item has no prompt, or more or fewer answers than the project's kind takes.
        """
        found = list(items)
        with self._writing() as connection:
            return insert_items(connection, read_settings(connection), found)

    def prioritise(self, priorities: Mapping[int, float]) -> None:
        """Set items' priorities (any finite number, 0 if never set), and hand out the highest first from now on.

        Raises:
            DataError: a number of no item, or a priority that is not finite.
        """
        if wrong := [each for each in priorities.values() if not math.isfinite(each)]:
            raise DataError(f"a priority is {wrong[0]}", "Give finite numbers.", field="priorities")
        with self._writing() as connection:
            settings = replace(read_settings(connection), order="priority")
            for number, priority in priorities.items():
                changed = connection.execute("UPDATE items SET priority = ? WHERE number = ?", (priority, number))
                if not changed.rowcount:
                    raise DataError(f"no item {number} is in the project", "Give numbers of items.", field="priorities")
            write_settings(connection, settings)
            order_items(connection, settings)

    def annotator(self, name: str) -> str:
        """Make an annotator, or give an existing one a new link. Returns the link's token, which is stored hashed only.

        Args:
            name: a pseudonym: 1 to 60 characters, printable, without blanks at its ends.

        Raises:
            DataError: a name that is not allowed.
        """
        self.join(name)
        token = secrets.token_urlsafe(24)
        with self._writing() as connection:
            connection.execute("UPDATE annotators SET token_hash = ? WHERE name = ?", (hash_of_token(token), name))
        return token

    def by_token(self, token_hash: bytes) -> str | None:
        """The annotator whose personal link has the token of this `hash_of_token`; None if nobody's has."""
        with self._lock, PROJECT_FILE.errors(self.path):
            row = self._connection.execute("SELECT name FROM annotators WHERE token_hash = ?", (token_hash,)).fetchone()
        return None if row is None else str(row[0])

    def join(self, name: str) -> None:
        """Make an annotator of that name unless there is one: for the person at this machine, or with the password.

        Raises:
            DataError: a name that is not allowed.
        """
        if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable() or name != name.strip():
            raise DataError(
                f"{name[:80]!r} cannot be the name of an annotator",
                f"Use 1 to {_LONGEST_NAME} printable characters, without blanks at the ends.",
                field="name",
            )
        with self._writing() as connection:
            connection.execute("INSERT OR IGNORE INTO annotators (name) VALUES (?)", (name,))

    def pause(self, annotator: str, paused: bool) -> None:
        """Pause: the annotator's open task goes back, and `next_task` gives None until this is called with False."""
        with self._writing() as connection:
            who, _ = _annotator(connection, annotator)
            connection.execute("UPDATE annotators SET paused = ? WHERE number = ?", (paused, who))
            if paused:
                give_back(connection, who)

    def next_task(self, annotator: str) -> Task | None:
        """The annotator's open task again, with its token and sides, or a new one; None if nothing is left or paused.

        Raises:
            DataError: there is no such annotator.
        """
        with self._writing(durable=False) as connection:
            who, paused = _annotator(connection, annotator)
            return None if paused else next_task(connection, read_settings(connection), who, time.time())

    def vote(self, annotator: str, token: str, ballot: Ballot) -> int:
        """Write a vote, durably. Returns its number; for a key that was seen before, the number it got then.

        Raises:
            VoteError: the lease is another's or was replaced, or the ballot is not allowed.
            DataError: there is no such annotator.
        """
        with self._writing() as connection:
            who, _ = _annotator(connection, annotator)
            return write_vote(connection, read_settings(connection), who, token, ballot, time.time())

    def undo(self, annotator: str) -> CastVote | None:
        """Take the annotator's latest current vote back; `next_task` then gives its item again. None without a vote.

        Raises:
            DataError: there is no such annotator.
        """
        with self._writing() as connection:
            who, _ = _annotator(connection, annotator)
            return undo_vote(connection, read_settings(connection), who, time.time())

    @contextmanager
    def _writing(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        with self._lock, PROJECT_FILE.transaction(self._connection, self.path, durable=durable) as connection:
            yield connection


def is_begun(path: Path) -> bool:
    """Whether a file is at `path` that is more than what a kill leaves of a project that was being made.

    That is an empty file; earlier releases left tables without settings, too.
    """
    if not path.exists() or (path.is_file() and not path.stat().st_size):
        return False
    if not PROJECT_FILE.is_one(path):
        return True
    with PROJECT_FILE.opened_for_reading(path) as connection:
        return has_settings(connection)


def require_settings(settings: ProjectSettings) -> None:
    """Refuse settings that cannot be.

    Raises:
        DataError: with the field.
    """

    def require(holds: bool, field: str, rule: str) -> None:
        if not holds:
            value = str(getattr(settings, field))[:80]
            raise DataError(f"{value!r} {rule}", "Change it.", field=field)

    require(settings.kind in get_args(Kind), "kind", f"is not one of {', '.join(get_args(Kind))}")
    require(settings.order in get_args(Order), "order", f"is not one of {', '.join(get_args(Order))}")
    require(1 <= settings.overlap <= 1000, "overlap", "is not 1 to 1,000")
    require(0 <= settings.repeats <= 1, "repeats", "is not a share, 0 to 1")
    require(0 < settings.lease_minutes <= 100_000, "lease_minutes", "is not above 0 and at most 100,000")
    require(len(settings.title) <= 200, "title", "is longer than 200 characters")
    require(is_encodable(settings.title), "title", "has a lone surrogate (half of a character)")
    require(is_encodable(settings.instructions), "instructions", "has a lone surrogate (half of a character)")
    require(len(settings.instructions) <= 100_000, "instructions", "is longer than 100,000 characters")
    names = settings.criteria
    require(len({*names}) == len(names) <= _MOST_CRITERIA, "criteria", "has a name twice, or more than 20")
    require(all(_CRITERION.fullmatch(each) for each in names), "criteria", "has a name that is not letters and digits")
    require(settings.kind != "rewrite" or not names, "criteria", "does not belong to a project of kind rewrite")


def _annotator(connection: sqlite3.Connection, name: str) -> tuple[int, bool]:
    row = connection.execute("SELECT number, paused FROM annotators WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise DataError(f"{name[:80]!r} is no annotator of this project", "Use the personal link again.", field="name")
    return row[0], bool(row[1])


def hash_of_token(token: str) -> bytes:
    """What is stored of a personal link. Tokens are random, so a fast hash is enough."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
