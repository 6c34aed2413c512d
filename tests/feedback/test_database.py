"""The file says what it is and how old its tables are; reading it changes nothing."""

from __future__ import annotations

import math
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from prefine.errors import CheckpointError, DataError
from prefine.feedback import database
from prefine.feedback.database import (
    FEEDBACK_FILE,
    is_feedback,
    open_for_writing,
    opened_for_reading,
    require_usable,
)
from prefine.feedback.store import FeedbackStore, NewEvent
from prefine.feedback.training_rows import feedback_rows
from tests.feedback.feedback_store import register


def other_database(path: Path) -> Path:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE completions (x)")
    connection.commit()
    connection.close()
    return path


def test_the_header_says_whose_it_is_from_the_first_moment(tmp_path: Path) -> None:
    """Also while all that was written is still in the log."""
    connection = open_for_writing(tmp_path / "feedback.db")
    assert is_feedback(tmp_path / "feedback.db")
    connection.close()
    assert not is_feedback(other_database(tmp_path / "other.db"))
    assert not is_feedback(tmp_path / "missing.db")


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0", b"PAR1" * 50])
def test_what_is_no_database_of_ours_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    path.write_bytes(content)
    with pytest.raises(DataError, match="Name a database that prefine serve has written"), opened_for_reading(path):
        pass


def test_a_damaged_database_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    open_for_writing(path).close()
    data = path.read_bytes()
    path.write_bytes(data[:100] + b"\xff" * (len(data) - 100))
    with pytest.raises(DataError, match=r"feedback\.db: the feedback database cannot be used"):
        list(feedback_rows(path, "votes"))


def test_tables_of_a_later_release_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    open_for_writing(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {database.VERSION + 1}")
    connection.close()
    with pytest.raises(DataError, match=r"Upgrade prefine"):
        open_for_writing(path)
    with pytest.raises(DataError, match=r"Upgrade prefine"), opened_for_reading(path):
        pass


def test_a_migration_brings_older_tables_forward_and_keeps_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    with FeedbackStore(path) as store:
        register(store, "a", "")
        store.record(NewEvent("a", "up"))
    more = (*database.MIGRATIONS, "ALTER TABLE events ADD COLUMN origin TEXT; CREATE INDEX o ON events (origin);")
    connection = replace(FEEDBACK_FILE, migrations=more).open_for_writing(path)
    assert connection.execute("SELECT kind, origin FROM events").fetchall() == [("up", None)]
    assert connection.execute("PRAGMA user_version").fetchone() == (len(more),)
    connection.close()


def test_a_migration_that_fails_leaves_the_tables_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    open_for_writing(path).close()
    before = path.read_bytes()
    more = (*database.MIGRATIONS, "ALTER TABLE events ADD COLUMN origin TEXT; ALTER TABLE nothing ADD COLUMN x TEXT;")
    with pytest.raises(DataError):
        replace(FEEDBACK_FILE, migrations=more).open_for_writing(path)
    assert path.read_bytes() == before


def test_readers_see_one_moment_and_do_not_wait(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    with FeedbackStore(path) as store:
        register(store, "a", "")
        store.record(NewEvent("a", "up"))
        with opened_for_reading(path) as connection:
            count = "SELECT count(*) FROM events"
            assert connection.execute(count).fetchone() == (1,)
            store.record(NewEvent("a", "down"))
            assert connection.execute(count).fetchone() == (1,)
            with pytest.raises(sqlite3.OperationalError):
                connection.execute("DELETE FROM events")


def test_a_reader_leaves_no_files_behind_and_needs_none(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    with FeedbackStore(path) as store:
        store.record(NewEvent(register(store, "a", ""), "up"))
    for mode in (0o755, 0o555):
        tmp_path.chmod(mode)
        with opened_for_reading(path) as connection:
            assert connection.execute("SELECT kind FROM events").fetchall() == [("up",)]
        tmp_path.chmod(0o755)
        assert [each.name for each in tmp_path.iterdir()] == ["feedback.db"]


def test_the_log_of_a_server_that_was_killed_is_read(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path / "feedback.db")
    store.record(NewEvent(register(store, "a", ""), "up"))
    (tmp_path / "copy").mkdir()
    for each in tmp_path.glob("feedback.db*"):
        (tmp_path / "copy" / each.name).write_bytes(each.read_bytes())
    store.close()
    with opened_for_reading(tmp_path / "copy" / "feedback.db") as connection:
        assert connection.execute("SELECT kind FROM events").fetchall() == [("up",)]


def test_a_place_for_a_store_is_looked_at_and_left_as_it_is(tmp_path: Path) -> None:
    require_usable(tmp_path / "feedback.db")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="not one with feedback"):
        require_usable(other_database(tmp_path / "other.db"))
    with pytest.raises(CheckpointError, match="there is no folder"):
        require_usable(tmp_path / "none" / "feedback.db")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="its folder does not exist"):
        open_for_writing(tmp_path / "none" / "feedback.db")


def test_a_file_of_the_first_version_keeps_everything(tmp_path: Path) -> None:
    first = replace(FEEDBACK_FILE, migrations=database.MIGRATIONS[:1])
    first.open_for_writing(tmp_path / "feedback.db").close()
    with database.opened_for_reading(tmp_path / "feedback.db") as connection:
        assert database.kept_since(connection) == -math.inf
