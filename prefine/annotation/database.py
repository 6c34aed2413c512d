"""The file `project.db`: its tables. Votes and undos are append-only; everything else can be worked out or given anew.

What is counted in `items`, `annotators` and `totals` follows from votes and undos, and is written in the same
transaction. It makes the next task a look-up in an index, however many items there are.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import asdict
from typing import Any

from prefine.annotation.records import ProjectSettings
from prefine.errors import DataError
from prefine.sqlite_file import SqliteFile

# MIGRATIONS[n] brings version n to n + 1. One that was released never changes.
MIGRATIONS = (
    """
    CREATE TABLE settings (one INTEGER PRIMARY KEY CHECK (one = 1), value TEXT NOT NULL);
    CREATE TABLE totals (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        items INTEGER NOT NULL,
        missing INTEGER NOT NULL
    );
    INSERT INTO totals VALUES (1, 0, 0);
    CREATE TABLE items (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL,
        digest BLOB NOT NULL UNIQUE,
        prompt TEXT NOT NULL,
        category TEXT NOT NULL,
        priority REAL NOT NULL DEFAULT 0,
        rank INTEGER NOT NULL DEFAULT 0,
        missing INTEGER NOT NULL
    );
    CREATE INDEX items_open ON items (rank, number) WHERE missing > 0;
    CREATE TABLE answers (
        id TEXT PRIMARY KEY,
        item INTEGER NOT NULL REFERENCES items (number),
        place INTEGER NOT NULL,
        text TEXT NOT NULL,
        model TEXT NOT NULL,
        run TEXT NOT NULL,
        UNIQUE (item, place)
    ) WITHOUT ROWID;
    CREATE TABLE annotators (
        number INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        token_hash BLOB UNIQUE,
        paused INTEGER NOT NULL DEFAULT 0,
        begin_at INTEGER NOT NULL DEFAULT 0,
        done INTEGER NOT NULL DEFAULT 0,
        firsts INTEGER NOT NULL DEFAULT 0
    );
    CREATE TABLE leases (
        annotator INTEGER PRIMARY KEY REFERENCES annotators (number),
        item INTEGER NOT NULL REFERENCES items (number),
        token TEXT NOT NULL UNIQUE,
        shown TEXT NOT NULL,
        repeat INTEGER NOT NULL,
        expires REAL NOT NULL
    );
    CREATE INDEX leases_item ON leases (item);
    CREATE TABLE repeats (
        annotator INTEGER NOT NULL REFERENCES annotators (number),
        item INTEGER NOT NULL REFERENCES items (number),
        after INTEGER NOT NULL,
        PRIMARY KEY (annotator, item)
    ) WITHOUT ROWID;
    CREATE INDEX repeats_after ON repeats (annotator, after);
    CREATE TABLE votes (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        annotator INTEGER NOT NULL REFERENCES annotators (number),
        item INTEGER NOT NULL REFERENCES items (number),
        key TEXT NOT NULL,
        kind TEXT NOT NULL,
        choice TEXT NOT NULL,
        ranking TEXT NOT NULL,
        text TEXT,
        text_of TEXT,
        strength INTEGER,
        note TEXT NOT NULL,
        criteria TEXT NOT NULL,
        seconds REAL NOT NULL,
        session TEXT NOT NULL,
        shown TEXT NOT NULL,
        repeat INTEGER NOT NULL,
        at REAL NOT NULL,
        UNIQUE (annotator, key)
    );
    CREATE INDEX votes_annotator_item ON votes (annotator, item);
    CREATE INDEX votes_annotator ON votes (annotator, number);
    CREATE TABLE undos (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        vote INTEGER NOT NULL UNIQUE REFERENCES votes (number),
        at REAL NOT NULL
    );
    CREATE TRIGGER votes_stay BEFORE UPDATE ON votes
        BEGIN SELECT RAISE (ABORT, 'votes are append-only'); END;
    CREATE TRIGGER votes_are_kept BEFORE DELETE ON votes
        BEGIN SELECT RAISE (ABORT, 'votes are append-only'); END;
    CREATE TRIGGER undos_stay BEFORE UPDATE ON undos
        BEGIN SELECT RAISE (ABORT, 'undos are append-only'); END;
    CREATE TRIGGER undos_are_kept BEFORE DELETE ON undos
        BEGIN SELECT RAISE (ABORT, 'undos are append-only'); END;
    """,
)

PROJECT_FILE = SqliteFile(
    application_id=0x70726661,  # "prfa"
    migrations=MIGRATIONS,
    what="annotation",
    usual_name="project.db",
    content="a project of prefine annotate",
    another_file="Name a project that prefine annotate has made, or move that file away.",
    pragmas=("recursive_triggers = ON",),  # else a REPLACE would delete a vote without asking the trigger
)

is_project = PROJECT_FILE.is_one


def read_settings(connection: sqlite3.Connection) -> ProjectSettings:
    """The project's settings.

    Raises:
        DataError: it has none: an earlier release was killed while it made the project.
    """
    row = connection.execute("SELECT value FROM settings").fetchone()
    if row is None:
        raise DataError("the project was not finished when it was made", "Make it with the same command again.")
    found: dict[str, Any] = json.loads(row[0])
    return ProjectSettings(**{**found, "criteria": tuple(found["criteria"])})


def has_settings(connection: sqlite3.Connection) -> bool:
    """Whether the project was finished when it was made."""
    return connection.execute("SELECT 1 FROM settings").fetchone() is not None


def insert_settings(connection: sqlite3.Connection, settings: ProjectSettings) -> None:
    """Write the settings of a new project. In a transaction of the caller's."""
    connection.execute("INSERT INTO settings VALUES (1, ?)", (json.dumps(asdict(settings)),))


def write_settings(connection: sqlite3.Connection, settings: ProjectSettings) -> None:
    """Write other settings. In a transaction of the caller's."""
    connection.execute("UPDATE settings SET value = ?", (json.dumps(asdict(settings)),))
