"""The file `feedback.db`: its tables, and how it is opened.

Readers (training, export) and the server never wait for each other: see prefine.sqlite_file.
"""

from __future__ import annotations

import math
import sqlite3
import time

from prefine.sqlite_file import SqliteFile

DAY_S = 86_400.0

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

FEEDBACK_FILE = SqliteFile(
    application_id=0x70726662,  # "prfb"
    migrations=MIGRATIONS,
    what="feedback",
    usual_name="feedback.db",
    content="feedback of prefine serve",
    another_file="Name a database that prefine serve has written, or move that file away.",
    pragmas=("secure_delete = ON",),  # what retention deletes is overwritten in the file
)
APPLICATION_ID = FEEDBACK_FILE.application_id
open_for_writing = FEEDBACK_FILE.open_for_writing
opened_for_reading = FEEDBACK_FILE.opened_for_reading
require_usable = FEEDBACK_FILE.require_usable
require_feedback = FEEDBACK_FILE.require
is_feedback = FEEDBACK_FILE.is_one
database_errors = FEEDBACK_FILE.errors


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
