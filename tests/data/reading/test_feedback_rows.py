"""`feedback.db` is a source of every kind of records, and no event is dropped in silence."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from prefine.data.prepare import Preparation
from prefine.data.reading.quarantine import Quarantine
from prefine.data.reading.sources import locate, read_rows
from prefine.data.records.kinds import kind_of_sources
from prefine.data.records.stream import read_records
from prefine.errors import DataError
from prefine.feedback.store import FeedbackStore, NewEvent
from prefine.records import Completion, Demonstration, Preference, Prompt, Vote
from tests.feedback.feedback_store import ASKED, WITH_TEXTS, going_on, register


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "feedback.db"
    path.parent.mkdir()
    with FeedbackStore(path, WITH_TEXTS) as store:
        for name, answer in (("a", "one"), ("b", "two"), ("c", " ")):
            register(store, name, answer)
        register(store, "d", "four", asked=going_on("one"))
        for name, kind in (("a", "up"), ("b", "down"), ("c", "down"), ("d", "down"), ("d", "withdrawn")):
            store.record(NewEvent(name, kind))  # type: ignore[arg-type]
        store.record(NewEvent("d", "correction", text="fourth"))
    return path


@pytest.mark.parametrize(
    ("kind", "records", "left_out", "quarantined"),
    [(Preference, 2, 2, 1), (Vote, 2, 3, 1), (Demonstration, 2, 3, 1), (Prompt, 2, 0, 0), (Completion, 2, 3, 1)],
)
def test_every_kind_is_read_and_every_event_counted(
    kind: Any, records: int, left_out: int, quarantined: int, database: Path
) -> None:
    stream = read_records(str(database), kind, quarantine=Quarantine())
    found = list(stream)
    assert len(found) == records and all(isinstance(record, kind) for record in found)
    counts = stream.counts
    assert (counts.left_out, counts.quarantined) == (left_out, quarantined)
    assert counts.rows_in == counts.kept + counts.quarantined + counts.left_out


def test_records_are_those_of_the_same_rows_in_a_file(database: Path, tmp_path: Path) -> None:
    rows = [row.value for row in read_rows(str(database)) if row.value is not None]
    assert kind_of_sources([str(database)]) == "preferences"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = list(read_records(str(tmp_path / "rows.jsonl"), Preference, quarantine=Quarantine()))
    assert list(read_records(str(database), Preference, quarantine=Quarantine())) == expected
    assert [(each.chosen, each.rejected) for each in expected] == [("one", "two"), ("fourth", "four")]
    assert expected[0].extra["source"] == "thumbs"


def test_votes_are_taken_where_there_is_no_pair(tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "feedback.db", WITH_TEXTS) as store:
        register(store, "a", "one")
        store.record(NewEvent("a", "up"))
    assert kind_of_sources([str(tmp_path / "feedback.db")]) == "votes"


def test_a_database_without_texts_says_why_nothing_can_be_learned(tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "feedback.db") as store:
        register(store, "a", "one")
        store.record(NewEvent("a", "up"))
    with pytest.raises(DataError, match=r"texts were not stored, as the server ran without --store-prompts \(1\)"):
        list(read_records(str(tmp_path / "feedback.db"), Vote, quarantine=Quarantine()))


def test_a_database_without_feedback_says_so(tmp_path: Path) -> None:
    FeedbackStore(tmp_path / "feedback.db").close()
    with pytest.raises(DataError, match="has no feedback yet"):
        kind_of_sources([str(tmp_path / "feedback.db")])


def test_another_database_is_refused_by_name_and_passed_over_in_a_folder(database: Path) -> None:
    other = database.with_name("cache.db")
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE t (x)")
    connection.commit()
    connection.close()
    with pytest.raises(DataError, match=r"not one with feedback of prefine serve\. Name a database"):
        locate(str(other))
    assert [part.name for part in locate(str(database.parent))] == [str(database)]


def test_prepared_data_go_by_what_was_said_not_by_the_bytes_of_the_file(database: Path) -> None:
    def key() -> str:
        from prefine.recipe.sections import DataSection

        section = DataSection(train=str(database))
        hashed = Preparation(database.parent, section, Preference, _Template(), 0, Quarantine())._key()  # type: ignore[arg-type]
        return hashed[0]

    before = key()
    with FeedbackStore(database, WITH_TEXTS) as store:
        register(store, "e", "five", asked=[{"role": "user", "content": "Another one."}])
        store.record(NewEvent("e", "correction", text="fifth"))
    assert key() != before


class _Template:
    fingerprint = "t"


def test_what_was_asked_is_the_prompt(database: Path) -> None:
    prompts = [record.prompt for record in read_records(str(database), Prompt, quarantine=Quarantine())]
    assert [[turn.content for turn in prompt] for prompt in prompts] == [
        [turn["content"] for turn in asked] for asked in (ASKED, going_on("one"))
    ]
