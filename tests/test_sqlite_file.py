"""Rules of prefine's own SQLite files that both databases share; tests/feedback/test_database.py has the rest."""

from __future__ import annotations

import sqlite3
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from prefine.errors import CheckpointError, DataError
from prefine.sqlite_file import SqliteFile

NOTES = SqliteFile(0x70726674, ("CREATE TABLE notes (text TEXT);",), "note", "notes.db", "notes", "Move it away.")
OTHERS = replace(NOTES, application_id=0x70726675, content="others")


def test_a_new_file_is_its_owners_and_of_its_kind_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    NOTES.open_for_writing(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert NOTES.is_one(path)
    assert not OTHERS.is_one(path)
    with pytest.raises(DataError, match=r"not one with others\. Move it away"):
        OTHERS.open_for_writing(path)


def test_a_transaction_is_whole_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    connection = NOTES.open_for_writing(path)
    with NOTES.transaction(connection, path, durable=True):
        connection.execute("INSERT INTO notes VALUES ('kept')")
    with pytest.raises(KeyError), NOTES.transaction(connection, path, durable=True):
        connection.execute("INSERT INTO notes VALUES ('dropped')")
        raise KeyError
    refused = pytest.raises(DataError, match="the note database cannot be used")
    with refused, NOTES.transaction(connection, path, durable=False):
        connection.execute("INSERT INTO notes VALUES ('dropped, too')")
        connection.execute("INSERT INTO nothing VALUES (1)")
    assert connection.execute("SELECT text FROM notes").fetchall() == [("kept",)]
    connection.close()


@pytest.mark.parametrize(("durable", "level"), [(True, 2), (False, 1)])
def test_what_is_acknowledged_is_flushed(durable: bool, level: int, tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    connection = NOTES.open_for_writing(path)
    with NOTES.transaction(connection, path, durable=durable):
        pass
    assert connection.execute("PRAGMA synchronous").fetchone() == (level,)
    connection.close()


def test_readers_cannot_write_and_see_one_moment(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    connection = NOTES.open_for_writing(path)
    with NOTES.opened_for_reading(path) as reading:
        assert reading.execute("SELECT count(*) FROM notes").fetchone() == (0,)
        connection.execute("INSERT INTO notes VALUES ('new')")
        assert reading.execute("SELECT count(*) FROM notes").fetchone() == (0,)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reading.execute("INSERT INTO notes VALUES ('mine')")
    connection.close()


def test_names_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be opened"):
        NOTES.require(tmp_path / "a\0b")
    with pytest.raises(CheckpointError):
        NOTES.require_usable(tmp_path / "a\0b")
