"""Votes in the formats of other programs; ties as documented for each."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prefine.annotation.exporting import arena_votes, battles, write_csv
from prefine.annotation.project import Project
from prefine.comparisons.votes import read_votes, write_votes
from prefine.data.reading.quarantine import Quarantine
from prefine.data.records.stream import read_records
from prefine.exchange.openai_evals import write_registry
from prefine.exchange.promptfoo import write_config
from prefine.records import Preference
from prefine.sqlite_file import SqliteFile
from tests.annotation.projects import answer_of, ballot, project, taken, vote


@pytest.fixture
def found(tmp_path: Path) -> Project:
    """Four items: dpo, sft, tie, both bad."""
    made = project(tmp_path / "project.db", 5)
    for said in ("dpo", "sft", "tie", "both_bad", "skip"):
        vote(made, said)
    return made


def test_arena_votes_are_read_again_and_trained_on(found: Project, tmp_path: Path) -> None:
    left_out: Counter[str] = Counter()
    path = tmp_path / "arena.jsonl"
    write_votes(path, arena_votes(found, left_out))
    votes, refused = read_votes(path)
    assert (refused, left_out) == ([], Counter())
    won = [each.model_a if each.winner == "model_a" else each.model_b for each in votes if "tie" not in each.winner]
    assert won == ["dpo", "sft"]
    assert [each.winner for each in votes[2:]] == ["tie", "tie (bothbad)"]
    for each, stored in zip(votes, found.votes(), strict=False):
        left = next(answer for answer in found.item(stored.item).answers if answer.id == stored.shown[0])
        assert (each.model_a, each.conversation_a[-1].content) == (left.model, left.text)  # as it was shown
        assert (each.judge, each.tstamp, each.question_id) == ("ann", stored.at, f"q{stored.item}")
    line = json.loads(path.read_text().splitlines()[0])
    assert {line["run_a"], line["run_b"]} == {"runs/dpo", "runs/sft"}
    records = list(read_records([str(path)], Preference, quarantine=Quarantine()))
    assert [(each.chosen, each.tie) for each in records[:2]] == [("dpo on 1", False), ("sft on 2", False)]
    assert [each.tie for each in records[2:]] == [True, True]


def test_arena_has_no_thumbs_repeats_or_pairs_of_one_model(tmp_path: Path) -> None:
    left_out: Counter[str] = Counter()
    with project(tmp_path / "a.db", 1, models=("dpo",), kind="thumb") as thumbs:
        vote(thumbs, "up")
        assert list(arena_votes(thumbs, left_out)) == []
    with project(tmp_path / "b.db", 2, repeats=0.5) as again:
        for _ in range(3):
            vote(again, "tie")
        assert len(list(arena_votes(again, left_out))) == 2
    assert left_out == {"is on a single answer": 1, "repeats an earlier vote of the annotator": 1}


def test_battles_leave_ties_out_and_say_which_answer_people_preferred(found: Project, tmp_path: Path) -> None:
    suite = battles(found.path)
    assert suite.left_out == {"is a tie": 2, "vote is a skip": 1}
    assert [each.answers[each.sides.index(each.better or "")] for each in suite.battles] == ["dpo on 1", "sft on 2"]
    (name,) = write_registry(suite, tmp_path / "evals", "people")
    lines = (tmp_path / "evals" / "data" / name / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["q1", "q2"]


def test_battles_keep_where_they_are_from(found: Project, tmp_path: Path) -> None:
    first = next(iter(found.votes()))
    origin = {
        **{"annotators": ["ann"], "voted_at": first.at, "source": "comparison", "model": "dpo", "run": "runs/dpo"},
        **{"rejected_model": "sft", "rejected_run": "runs/sft"},
    }
    suite = battles(found.path)
    (name,) = write_registry(suite, tmp_path / "evals", "people")
    line = (tmp_path / "evals" / "data" / name / "samples.jsonl").read_text().splitlines()[0]
    assert json.loads(line)["metadata"] == origin
    write_config(suite, tmp_path / "promptfoo", "people", model="judge", url=None)
    line = (tmp_path / "promptfoo" / "tests.jsonl").read_text().splitlines()[0]
    kept = json.loads(line)["metadata"]
    plain = ("annotators", "voted_at")
    assert {each: json.loads(kept[each]) if each in plain else kept[each] for each in origin} == origin


def test_a_spreadsheet_has_every_vote_and_runs_no_formula(tmp_path: Path) -> None:
    with project(tmp_path / "project.db", 2, models=("=dpo", "sft"), criteria=("helpful",)) as found:
        task = taken(found)
        first = answer_of(task, "=dpo")
        found.vote(
            "ann",
            task.token,
            ballot(first, note='=HYPERLINK("x")\n"quoted", text', strength=2, criteria={"helpful": "tie"}, seconds=1.5),
        )
        vote(found, "skip")
        shown = [each.id for each in task.item.answers].index(task.shown[0]) + 1
        assert write_csv(found, tmp_path / "votes.csv") == 2
    text = (tmp_path / "votes.csv").read_bytes().decode("utf-8-sig")
    voted, skipped = csv.DictReader(io.StringIO(text, newline=""))
    assert voted["note"] == '\'=HYPERLINK("x")\n"quoted", text'
    assert (voted["choice"], voted["model_chosen"], voted["strength"]) == ("1", "'=dpo", "2")
    assert (voted["criterion_helpful"], voted["seconds"], voted["repeat"]) == ("tie", "1.5", "0")
    assert voted["shown"].startswith(str(shown))
    assert (voted["answer_2"], voted["run_2"], voted["item"]) == ("sft on 1", "runs/sft", "q1")
    assert json.loads(voted["prompt"]) == [["user", "Question 1?"]]
    assert (skipped["choice"], skipped["model_chosen"]) == ("skip", "")


def test_a_ranking_in_a_spreadsheet(tmp_path: Path) -> None:
    with project(tmp_path / "project.db", 1, models=("a", "b", "c"), kind="rank") as found:
        task = taken(found)
        a, b, c = (answer_of(task, model) for model in "abc")
        found.vote("ann", task.token, ballot("ranked", ranking=((c, a), (b,))))
        write_csv(found, tmp_path / "votes.csv")
    (line,) = csv.DictReader(io.StringIO((tmp_path / "votes.csv").read_bytes().decode("utf-8-sig"), newline=""))
    assert (line["ranking"], line["model_chosen"], line["choice"]) == ("3 = 1 > 2", "c = a", "ranked")


def test_a_spreadsheet_does_not_open_the_project_for_each_vote(
    found: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    reading = SqliteFile.opened_for_reading

    def counted(self: SqliteFile, path: Path) -> Any:
        opened.append(path)
        return reading(self, path)

    monkeypatch.setattr(SqliteFile, "opened_for_reading", counted)
    with found:
        assert write_csv(found, tmp_path / "votes.csv") == 5
    assert len(opened) == 2  # the settings, and all votes with their items
