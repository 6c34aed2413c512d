"""The file `feedback.db`: its tables, how they come to be, and how it is opened.

SQLite with a write-ahead log: readers (training, export) and the server never wait for each other. `application_id` in
the file's header says that the file is ours, `user_version` which migrations it has had.
"""

from __future__ import annotations

import math
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefine.errors import DataError
from prefine.runs.atomic import require_writable, storage_errors

APPLICATION_ID = 0x70726662  # "prfb"
_HEADER = b"SQLite format 3\0"
_APPLICATION_ID_AT = 68  # https://www.sqlite.org/fileformat.html, "Application ID"
BUSY_TIMEOUT_MS = 5_000
DAY_S = 86_400.0
_ANOTHER_FILE = "Name a database that prefine serve has written, or move that file away."

# MIGRATIONS[n] brings version n to n + 1. One that was released never changes.
MIGRATIONS = (
    """
    CREATE TABLE completions (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL,
        choice INTEGER NOT NULL,
        at REAL NOT NULL,
        model TEXT NOT NULL,
        run TEXT,
        run_hash TEXT,
        prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        finish_reason TEXT,
        without_texts TEXT,
        messages TEXT,
        tools TEXT,
        answer TEXT,
        UNIQUE (id, choice)
    );
    CREATE INDEX completions_at ON completions (at);
    CREATE TABLE events (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        key TEXT NOT NULL UNIQUE,
        at REAL NOT NULL,
        completion INTEGER NOT NULL REFERENCES completions (number) ON DELETE CASCADE,
        kind TEXT NOT NULL CHECK (kind IN ('up', 'down', 'withdrawn', 'correction', 'preferred', 'regenerated')),
        text TEXT,
        other INTEGER REFERENCES completions (number) ON DELETE CASCADE
    );
    CREATE INDEX events_completion ON events (completion);
    CREATE INDEX events_other ON events (other);
    CREATE TRIGGER events_are_append_only BEFORE UPDATE ON events
        BEGIN SELECT RAISE (ABORT, 'events are append-only'); END;
    """,
    "CREATE TABLE retention (days REAL);",
)
VERSION = len(MIGRATIONS)
_VERSION_WITH_RETENTION = 2


def open_for_writing(path: Path) -> sqlite3.Connection:
    """The database at `path`, made if there is none, brought to the newest version. Threads may use it in turns.

    Raises:
        DataError: a file of that name is something else, or was written by a later release.
        CheckpointError: it cannot be written.
    """
    there = _is_there(path)
    if there:
        require_feedback(path)
    with storage_errors(path), database_errors(path):
        if not there:
            # Prompts may be stored here: the file and its log are their owner's alone.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA secure_delete = ON")  # what retention deletes is overwritten in the file
            _migrate(connection, path)
            connection.execute("PRAGMA journal_mode = WAL")
        except BaseException:
            connection.close()
            raise
    return connection


@contextmanager
def opened_for_reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Inside, the database as it is at this moment, whatever a server writes meanwhile.

    Raises:
        DataError: it is not a feedback database, or cannot be read.
    """
    require_feedback(path)
    with database_errors(path):
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?{_mode(path)}", uri=True, isolation_level=None)
        try:
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
            connection.execute("PRAGMA query_only = ON")
            connection.execute("BEGIN")
            _require_version(connection.execute("PRAGMA user_version").fetchone()[0], path)
            yield connection
        finally:
            connection.close()


def set_retention(connection: sqlite3.Connection, days: float | None) -> None:
    """Write down how long completions are kept, for those that read the database. In a transaction of the caller's."""
    connection.execute("DELETE FROM retention")
    connection.execute("INSERT INTO retention VALUES (?)", (days,))


def kept_since(connection: sqlite3.Connection) -> float:
    """The Unix time of the oldest completion that may still be used; minus infinity where all are kept.

    Deleting takes a server that runs, so a reader leaves out by itself what is past its time.
    """
    if connection.execute("PRAGMA user_version").fetchone()[0] < _VERSION_WITH_RETENTION:
        return -math.inf
    (days,) = connection.execute("SELECT days FROM retention").fetchone() or (None,)
    return -math.inf if days is None else time.time() - days * DAY_S


def require_usable(path: Path) -> None:
    """Find out whether a store can be opened at `path`; nothing is made there.

    Raises:
        DataError: a file of that name is something else.
        CheckpointError: it cannot be written.
    """
    require_writable(path)
    if _is_there(path):
        require_feedback(path)


def require_feedback(path: Path) -> None:
    """Raise DataError unless the header of a file says that it is a feedback database."""
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be opened: {error.strerror or error}", "Check its name and permissions."
        ) from None
    if not header.startswith(_HEADER):
        raise DataError(f"{path}: is not a SQLite database, as feedback.db is one", _ANOTHER_FILE)
    if int.from_bytes(header[_APPLICATION_ID_AT : _APPLICATION_ID_AT + 4], "big") != APPLICATION_ID:
        raise DataError(f"{path}: is a SQLite database, but not one with feedback of prefine serve", _ANOTHER_FILE)


def is_feedback(path: Path) -> bool:
    """Whether the header of a file says that it is a feedback database."""
    try:
        require_feedback(path)
    except DataError:
        return False
    return True


@contextmanager
def database_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite raises about the file into a DataError.

    Raises:
        DataError: the file is damaged, locked for long, or the disk is full.
    """
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise DataError(
            f"{path}: the feedback database cannot be used: {error}",
            "Check the disk and its permissions, or move the file away and begin a new one.",
        ) from error


def _is_there(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _mode(path: Path) -> str:
    """How to open a file that nothing is written into.

    The log needs write access to its folder, and the last one that closes the database removes the log; where that is
    not allowed and there is no log, nobody writes.
    """
    if os.access(path.parent, os.W_OK) and os.access(path, os.W_OK):
        return "mode=rw"
    return "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "mode=ro&immutable=1"


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("BEGIN IMMEDIATE")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    _require_version(version, path)
    # Not executescript, which would commit before it begins: a kill between two statements must leave nothing.
    for migration in MIGRATIONS[version:]:
        for statement in _statements(migration):
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")


def _statements(script: str) -> Iterator[str]:
    """The statements of a script; a trigger holds semicolons of its own."""
    statement = ""
    for piece in script.split(";"):
        statement += piece + ";"
        if sqlite3.complete_statement(statement):
            if statement.strip() != ";":
                yield statement
            statement = ""


def _require_version(version: int, path: Path) -> None:
    if version > VERSION:
        raise DataError(
            f"{path}: has version {version} of the feedback tables, and this prefine knows versions up to {VERSION}",
            "Upgrade prefine.",
        )
