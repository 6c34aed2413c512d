"""`prefine feedback export`: rows that prefine and TRL read, and a count of whatever is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefine.cli.app import main
from prefine.data.reading.quarantine import Quarantine
from prefine.data.records.stream import read_records
from prefine.feedback.store import FeedbackSettings, FeedbackStore, NewEvent
from prefine.records import Preference
from tests.feedback.feedback_store import ASKED, WITH_TEXTS, register


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def filled(settings: FeedbackSettings = WITH_TEXTS) -> None:
    with FeedbackStore(Path("feedback.db"), settings) as store:
        for name, answer in (("a", "one"), ("b", "two"), ("c", "two")):
            register(store, name, answer)
        for name, kind in (("a", "up"), ("a", "up"), ("b", "down"), ("c", "down")):
            store.record(NewEvent(name, kind))  # type: ignore[arg-type]


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as leaving:
        main(["feedback", "export", *words])
    return int(leaving.value.code or 0)


def test_votes_have_the_columns_of_kto(capsys: pytest.CaptureFixture[str]) -> None:
    filled()
    assert run("--to", "votes") == 0
    shown = capsys.readouterr()
    rows = [json.loads(line) for line in shown.out.splitlines()]
    assert [(row["completion"][0]["content"], row["label"]) for row in rows] == [("one", True), ("two", False)]
    assert all(row["prompt"] == ASKED for row in rows)
    assert shown.err.splitlines() == [
        "2 votes",
        "1 more say what an earlier one says",
        "1 event without a row: event was replaced by a later one",
    ]


def test_preferences_go_to_a_file_that_training_reads(capsys: pytest.CaptureFixture[str]) -> None:
    filled()
    assert run("feedback.db", "--to", "preferences", "--out", "pairs.jsonl") == 0
    (row,) = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"], row["source"]) == ("one", "two", "thumbs")
    assert "1 preference\n" in capsys.readouterr().err
    (read,) = read_records("pairs.jsonl", Preference, quarantine=Quarantine())
    assert (read.chosen, read.rejected) == ("one", "two")
    before = Path("pairs.jsonl").read_bytes()
    assert run("--to", "votes", "--out", "pairs.jsonl") == 2
    assert "a file with content is not replaced" in capsys.readouterr().err
    assert Path("pairs.jsonl").read_bytes() == before


@pytest.mark.parametrize("out", [[], ["--out", "rows.jsonl"]])
def test_nothing_to_write_is_one_line_and_no_file(out: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    filled(FeedbackSettings())
    assert run("--to", "votes", *out) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert "texts were not stored, as the server ran without --store-prompts (3)" in shown.err
    assert {path.name for path in Path().iterdir()} <= {"feedback.db", "feedback.db-wal", "feedback.db-shm"}


@pytest.mark.parametrize("name", ["feedback.db", "rows.jsonl", "."])
def test_what_is_no_feedback_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("rows.jsonl").write_text('{"prompt": "Q", "completion": "A", "label": true}\n' * 10)
    assert run(name, "--to", "votes") == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error: {name}: ") and shown.err.count("\n") == 1
