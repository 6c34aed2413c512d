"""Votes as rows to train on, worked by hand, and read by the package's own reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefine.annotation.project import Project
from prefine.annotation.training_rows import annotation_rows, content_digest
from prefine.data.reading.quarantine import Quarantine
from prefine.data.records.kinds import KINDS, kind_of_sources
from prefine.data.records.stream import read_records
from prefine.errors import DataError
from prefine.feedback.training_rows import Wanted
from prefine.records import Preference, Vote
from tests.annotation.projects import answer_of, ballot, project, taken, vote


def rows(path: Path, wanted: Wanted | None = None) -> list[dict[str, Any]]:
    return [row.value for row in annotation_rows(path, wanted) if row.value is not None]


def unused(path: Path, wanted: Wanted | None = None) -> list[str]:
    return [f"{row.unused.field} {row.unused.reason}" for row in annotation_rows(path, wanted) if row.unused]


def judged(path: Path, *votes: str, **settings: Any) -> Path:
    """A project in which as many annotators have judged one item."""
    names = [f"a{number}" for number in range(len(votes))]
    with project(path, 1, *names, overlap=len(votes), **settings) as found:
        for name, said in zip(names, votes, strict=True):
            vote(found, said, name)
    return path


@pytest.mark.parametrize(
    ("votes", "chosen", "counts"),
    [
        (("dpo",), "dpo", (1, 0, 0)),
        (("dpo", "sft", "dpo"), "dpo", (2, 1, 0)),
        (("dpo", "tie", "both_bad"), "dpo", (1, 0, 2)),
        (("dpo", "sft"), None, (1, 1, 0)),
        (("tie",), None, (0, 0, 1)),
        (("both_bad", "tie"), None, (0, 0, 2)),
        (("both_bad", "both_bad", "dpo"), None, (0, 1, 2)),
    ],
)
def test_a_pair_is_one_preference_by_majority(
    votes: tuple[str, ...], chosen: str | None, counts: tuple[int, int, int], tmp_path: Path
) -> None:
    (row,) = rows(judged(tmp_path / "project.db", *votes))
    assert row.get("tie", False) == (chosen is None)
    assert row["chosen"] == [{"role": "assistant", "content": f"{chosen or 'sft'} on 1"}]
    assert (row["votes_for"], row["votes_against"], row["votes_tied"]) == counts


def test_where_a_row_is_from_is_kept(tmp_path: Path) -> None:
    with project(tmp_path / "project.db", 1, "ann", "bob", overlap=2) as found:
        for name, strength in (("bob", 3), ("ann", 2)):
            task = taken(found, name)
            found.vote(name, task.token, ballot(answer_of(task, "dpo"), strength=strength))
        at = max(each.at for each in found.votes())
    assert rows(tmp_path / "project.db") == [
        {
            "prompt": [{"role": "user", "content": "Question 1?"}],
            "id": "q1",
            "model": "dpo",
            "run": "runs/dpo",
            "annotators": ["ann", "bob"],
            "voted_at": at,
            "source": "comparison",
            "chosen": [{"role": "assistant", "content": "dpo on 1"}],
            "rejected": [{"role": "assistant", "content": "sft on 1"}],
            "rejected_model": "sft",
            "rejected_run": "runs/sft",
            "votes_for": 2,
            "votes_against": 0,
            "votes_tied": 0,
            "mean_strength": 2.5,
        }
    ]


def test_skips_and_repeats_are_said_and_undone_votes_are_gone(tmp_path: Path) -> None:
    path = tmp_path / "project.db"
    with project(path, 3, repeats=0.5) as found:
        vote(found, "dpo")
        vote(found, "dpo")
        vote(found, "skip")
        assert vote(found, "sft").repeat
        found.undo("ann")
        assert vote(found, "sft").repeat
    assert [row["id"] for row in rows(path)] == ["q1", "q2"]
    assert unused(path) == [
        "vote is a skip",
        "vote repeats an earlier one of the annotator, to measure self-consistency",
    ]


def test_a_ranking_gives_all_its_pairs(tmp_path: Path) -> None:
    path = tmp_path / "project.db"
    with project(path, 1, models=("a", "b", "c"), kind="rank") as found:
        task = taken(found)
        a, b, c = (answer_of(task, model) for model in "abc")
        found.vote("ann", task.token, ballot("ranked", ranking=((c,), (a, b))))
    assert [(row["id"], row["model"], row["rejected_model"], row.get("tie")) for row in rows(path)] == [
        ("q1/1>2", "a", "b", True),
        ("q1/3>1", "c", "a", None),
        ("q1/3>2", "c", "b", None),
    ]
    # The best one won both pairs; the others each lost one and tied one.
    assert [(row["model"], row["label"]) for row in rows(path, "votes")] == [("a", False), ("b", False), ("c", True)]


def test_votes_are_thumbs_on_both_answers(tmp_path: Path) -> None:
    labels = {row["model"]: row["label"] for row in rows(judged(tmp_path / "won.db", "dpo"), "votes")}
    assert labels == {"dpo": True, "sft": False}
    labels = {row["model"]: row["label"] for row in rows(judged(tmp_path / "bad.db", "both_bad"), "votes")}
    assert labels == {"dpo": False, "sft": False}
    tied = judged(tmp_path / "tie.db", "tie")
    assert rows(tied, "votes") == []
    assert unused(tied, "votes") == ["votes are as many for the answer as against it"] * 2


def test_answers_that_most_call_bad_are_false_and_are_not_imitated(tmp_path: Path) -> None:
    path = judged(tmp_path / "bad.db", "both_bad", "both_bad", "dpo")
    assert {row["model"]: row["label"] for row in rows(path, "votes")} == {"dpo": False, "sft": False}
    assert rows(path, "demonstrations") == []
    half = judged(tmp_path / "half.db", "both_bad", "dpo")
    assert {row["model"]: row["label"] for row in rows(half, "votes")} == {"dpo": True, "sft": False}


def test_thumbs_are_votes_unless_something_else_is_wanted(tmp_path: Path) -> None:
    path = judged(tmp_path / "project.db", "up", "down", "up", models=("dpo",), kind="thumb")
    ((row,)) = rows(path)
    assert (row["label"], row["completion"][0]["content"]) == (True, "dpo on 1")
    assert rows(path, "demonstrations")[0]["completion"] == row["completion"]
    assert rows(path, "preferences") == []
    assert len(unused(path, "preferences")) == 3


def test_an_edited_answer_is_chosen_over_the_original(tmp_path: Path) -> None:
    path = tmp_path / "project.db"
    with project(path, 2, models=("dpo",), kind="rewrite") as found:
        for text in ("Better.", "dpo on 2"):
            task = taken(found)
            found.vote("ann", task.token, ballot("rewritten", text=text, text_of=task.shown[0]))
    (row,) = rows(path)
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"], row["source"]) == (
        "Better.",
        "dpo on 1",
        "rewrite",
    )
    assert unused(path) == ["text is the answer itself"]
    assert [each["completion"][0]["content"] for each in rows(path, "demonstrations")] == ["Better."]
    assert [(each["completion"][0]["content"], each["label"]) for each in rows(path, "votes")] == [
        ("Better.", True),
        ("dpo on 1", False),
    ]


def test_an_answer_may_be_edited_in_a_comparison_too(tmp_path: Path) -> None:
    path = tmp_path / "project.db"
    with project(path, 1) as found:
        task = taken(found)
        dpo = answer_of(task, "dpo")
        found.vote("ann", task.token, ballot(dpo, text="Best.", text_of=dpo))
    assert [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows(path)] == [
        ("dpo on 1", "sft on 1"),
        ("Best.", "dpo on 1"),
    ]


@pytest.mark.parametrize("kind", list(KINDS))
def test_training_reads_a_project_as_every_kind(kind: str, tmp_path: Path) -> None:
    path = judged(tmp_path / "project.db", "dpo")
    assert kind_of_sources([str(path)]) == "preferences"
    stream = read_records([str(path)], KINDS[kind], quarantine=Quarantine())
    records = list(stream)
    assert len(records) == {"preferences": 1, "votes": 2, "demonstrations": 1, "prompts": 1}[kind]
    assert not stream.counts.quarantined and not stream.counts.answers_unread
    for record in records:
        if isinstance(record, Preference):
            assert (record.chosen, record.rejected) == ("dpo on 1", "sft on 1")
        if isinstance(record, Vote):
            assert record.label == (record.completion == "dpo on 1")


def test_a_tie_is_a_tie_for_training(tmp_path: Path) -> None:
    (record,) = read_records([str(judged(tmp_path / "p.db", "tie"))], Preference, quarantine=Quarantine())
    assert record.tie


def test_a_project_without_votes_is_refused(tmp_path: Path) -> None:
    project(tmp_path / "project.db").close()
    with pytest.raises(DataError, match=r"has no votes yet\. Judge answers with prefine annotate open first"):
        list(read_records([str(tmp_path / "project.db")], Preference, quarantine=Quarantine()))


def test_the_digest_is_of_what_can_be_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "project.db"
    with project(path, 2) as found:
        vote(found, "dpo")
        before = content_digest(path)
        found.next_task("ann")
        found.join("bob")
        assert content_digest(path) == before
        vote(found, "dpo")
        assert content_digest(path) != before
        undone = found.undo("ann")
        assert undone is not None
        assert content_digest(path) == before
    assert content_digest(path) == before
    with Project(path) as found:
        assert content_digest(path) == before
