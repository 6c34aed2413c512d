"""An acknowledged event is stored, once, whatever is killed; nothing is stored that was not asked for."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from prefine.errors import DataError, RecipeError
from prefine.feedback.store import (
    FeedbackRefusedError,
    FeedbackSettings,
    FeedbackStore,
    NewEvent,
    NoTextsError,
    RepeatedKeyError,
    UnknownCompletionError,
)
from tests.feedback.feedback_store import WITH_TEXTS, all_bytes, register


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def test_events_are_kept_in_order_with_what_they_are_about(tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "feedback.db", WITH_TEXTS) as store:
        register(store, "a", "Please wait.", run="runs/dpo", run_hash="9f86")
        register(store, "b", "It left Lyon.")
        assert not store.record(NewEvent("a", "down")).repeated
        store.record(NewEvent("a", "correction", text="It left Lyon this morning."))
        store.record(NewEvent("b", "regenerated", other_id="a"))
    found = rows(
        tmp_path / "feedback.db",
        "SELECT c.id, e.kind, e.text, o.id FROM events e JOIN completions c ON c.number = e.completion"
        " LEFT JOIN completions o ON o.number = e.other ORDER BY e.number",
    )
    assert found == [
        ("a", "down", None, None),
        ("a", "correction", '"It left Lyon this morning."', None),
        ("b", "regenerated", None, "a"),
    ]
    assert rows(
        tmp_path / "feedback.db", "SELECT model, run, run_hash, prompt_tokens, completion_tokens FROM completions"
    ) == [
        ("dpo", "runs/dpo", "9f86", 9, 3),
        ("dpo", None, None, 9, 3),
    ]


def test_the_log_is_flushed_at_every_event_and_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "feedback.db") as store:
        connection = store._connection
        register(store, "a", "")
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        store.record(NewEvent("a", "up"))
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        for file in tmp_path.iterdir():
            assert file.stat().st_mode & 0o077 == 0


def test_choices_of_one_completion_are_told_apart(tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "feedback.db", WITH_TEXTS) as store:
        register(store, "a", "one")
        register(store, "a", "two", choice=1)
        register(store, "a", "again")  # changes nothing
        store.record(NewEvent("a", "up", choice=1))
        with pytest.raises(UnknownCompletionError, match="'a' with a choice 2 is known"):
            store.record(NewEvent("a", "up", choice=2))
    path = tmp_path / "feedback.db"
    assert rows(path, "SELECT choice, answer FROM completions") == [(0, '"one"'), (1, '"two"')]


def test_refused_events_leave_nothing(tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "feedback.db") as store:
        register(store, "a", "one")
        with pytest.raises(UnknownCompletionError):
            store.record(NewEvent("x", "up"))
        with pytest.raises(UnknownCompletionError):
            store.record(NewEvent("a", "preferred", other_id="x"))
        with pytest.raises(FeedbackRefusedError, match="compared with itself"):
            store.record(NewEvent("a", "preferred", other_id="a"))
        with pytest.raises(NoTextsError, match="--store-prompts"):
            store.record(NewEvent("a", "correction", text="two"))
        store.record(NewEvent("a", "up"))  # and the store goes on
    assert rows(tmp_path / "feedback.db", "SELECT kind FROM events") == [("up",)]


def test_a_repeated_key_records_once_and_must_mean_the_same(tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "feedback.db", WITH_TEXTS) as store:
        register(store, "a", "one")
        first = store.record(NewEvent("a", "correction", text="mail a@b.example", key="k"))
        again = store.record(NewEvent("a", "correction", text="mail a@b.example", key="k"))
        assert (again.number, first.repeated, again.repeated) == (first.number, False, True)
        with pytest.raises(RepeatedKeyError):
            store.record(NewEvent("a", "up", key="k"))
    assert len(rows(tmp_path / "feedback.db", "SELECT * FROM events")) == 1


def test_events_cannot_be_changed(tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "feedback.db") as store:
        register(store, "a", "one")
        store.record(NewEvent("a", "up"))
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        rows(tmp_path / "feedback.db", "UPDATE events SET kind = 'down'")


SECRETS = ["parcel is late", "Please wait", "jo@mail.example"]


def test_no_text_reaches_the_disk_unless_asked_for(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "My parcel is late, jo@mail.example"}]
    for name, settings, stored in (
        ("off.db", FeedbackSettings(), []),
        ("on.db", WITH_TEXTS, SECRETS[:2]),
        ("raw.db", FeedbackSettings(store_texts=True, redact=False), SECRETS),
        ("own.db", FeedbackSettings(store_texts=True, patterns=("(?i)PARCEL is",)), SECRETS[1:2]),
    ):
        with FeedbackStore(tmp_path / name, settings) as store:
            register(store, "a", "Please wait.", asked=asked)
            found = all_bytes(tmp_path / name)
        assert [secret for secret in SECRETS if secret.encode() in found] == stored, name


def test_a_pattern_out_of_its_time_stores_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefine.feedback.redaction.BUDGET_S", 0.0)
    with FeedbackStore(tmp_path / "feedback.db", FeedbackSettings(store_texts=True, patterns=("x",))) as store:
        register(store, "a", "Please wait.")
        with pytest.raises(NoTextsError, match="'x' takes too long"):
            store.record(NewEvent("a", "correction", text="Better."))
        store.record(NewEvent("a", "up"))
        assert b"Please wait" not in all_bytes(tmp_path / "feedback.db")
    assert rows(tmp_path / "feedback.db", "SELECT without_texts, answer FROM completions") == [("not redacted", None)]


def test_retention_deletes_old_answers_with_their_events_and_texts(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    with FeedbackStore(path, FeedbackSettings(store_texts=True, retention_days=30)) as store:
        register(store, "old", "Please wait.")
        store.record(NewEvent("old", "down"))
        assert store.purge(time.time() + 29 * 86_400) == 0
        assert store.purge(time.time() + 31 * 86_400) == 1
        assert b"Please wait" not in all_bytes(path)
        register(store, "new", "It left Lyon.")
        store.record(NewEvent("new", "up"))
        with pytest.raises(UnknownCompletionError, match="retention"):
            store.record(NewEvent("old", "up"))
    assert rows(path, "SELECT kind FROM events") == [("up",)]
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE completions SET at = at - 31 * 86400")
    connection.close()
    with FeedbackStore(path, FeedbackSettings(retention_days=30)):
        assert rows(path, "SELECT * FROM completions") == []


def aged(path: Path, days: int) -> None:
    """Make all that is stored so much older."""
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE completions SET at = at - ? * 86400", (days,))
    connection.close()


def test_retention_needs_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefine.feedback.store._BETWEEN_PURGES_S", 0.01)
    path = tmp_path / "feedback.db"
    with FeedbackStore(path, FeedbackSettings(retention_days=30)) as store:
        register(store, "old", "")
        aged(path, 31)
        end = time.monotonic() + 10
        while rows(path, "SELECT * FROM completions"):
            assert time.monotonic() < end
            time.sleep(0.01)


def test_what_is_past_its_time_takes_no_events_before_it_is_deleted(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    with FeedbackStore(path, FeedbackSettings(retention_days=30)) as store:
        register(store, "old", "")
        aged(path, 31)
        with pytest.raises(UnknownCompletionError, match="retention"):
            store.record(NewEvent("old", "up"))


def test_a_log_that_a_reader_holds_is_emptied_later(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    with FeedbackStore(path, FeedbackSettings(store_texts=True, retention_days=30)) as store:
        register(store, "old", "Please wait.")
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM completions").fetchall()
        assert store.purge(time.time() + 31 * 86_400) == 1
        assert b"Please wait" in all_bytes(path)
        reader.close()
        assert store.purge(time.time() + 31 * 86_400) == 0
        assert b"Please wait" not in all_bytes(path)


@pytest.mark.parametrize("days", [0, -1, 1e9, float("nan")])
def test_a_retention_that_cannot_be_is_refused(days: float) -> None:
    with pytest.raises(RecipeError, match="--retention-days is"):
        FeedbackSettings(retention_days=days)


def test_another_file_is_refused_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    path.write_text("id,prompt\n")
    with pytest.raises(DataError, match="is not a SQLite database"):
        FeedbackStore(path)
    assert path.read_text() == "id,prompt\n"


def test_eight_threads_lose_and_double_nothing(tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "feedback.db") as store:
        register(store, "a", "")
        threads = [
            threading.Thread(target=lambda: [store.record(NewEvent("a", "up", key=f"k{n}")) for n in range(25)])
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = rows(tmp_path / "feedback.db", "SELECT key FROM events")
    assert sorted(found) == sorted((f"k{n}",) for n in range(25))


SENDER = """
import sys, threading
from pathlib import Path
from prefine.feedback.store import AnsweredRequest, FeedbackStore, NewEvent
store = FeedbackStore(Path(sys.argv[1]))
store.register(AnsweredRequest(id="a", model="m", prompt_tokens=1, completion_tokens=1))
def send(poster):
    for n in range(10_000):
        store.record(NewEvent("a", "up" if n % 2 else "down", key=f"{poster}-{n}"))
        sys.stdout.write(f"{poster}-{n}\\n"); sys.stdout.flush()
for poster in range(4):
    threading.Thread(target=send, args=(poster,), daemon=True).start()
threading.Event().wait()
"""


@pytest.mark.parametrize("acknowledged", [1, 2, 17, 120])
def test_acknowledged_events_survive_a_kill(acknowledged: int, tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    with subprocess.Popen(
        [sys.executable, "-c", SENDER, str(path)], stdout=subprocess.PIPE, text=True, bufsize=1
    ) as sender:
        assert sender.stdout is not None
        seen = {sender.stdout.readline().strip() for _ in range(acknowledged)}
        sender.send_signal(signal.SIGKILL)
        seen |= {line.strip() for line in sender.stdout if line.endswith("\n")}
    assert len(seen) >= acknowledged and "" not in seen
    with FeedbackStore(path) as store:
        stored = [key for (key,) in rows(path, "SELECT key FROM events")]
        assert seen <= set(stored) and len(stored) == len(set(stored))
        # A client that got no answer sends again.
        sent = [NewEvent("a", "up" if int(key.split("-")[1]) % 2 else "down", key=key) for key in stored]
        assert all(store.record(event).repeated for event in sent)
        assert len(rows(path, "SELECT key FROM events")) == len(stored)
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]
