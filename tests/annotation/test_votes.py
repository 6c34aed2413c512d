"""What a ballot may say, that a vote counts once, and that undo is an event."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefine.annotation.database import PROJECT_FILE
from prefine.annotation.project import Project
from prefine.annotation.records import Ballot
from prefine.annotation.votes import VoteError
from tests.annotation.projects import answer_of, ballot, project, taken, vote


def test_a_ballot_that_is_sent_twice_counts_once(tmp_path: Path) -> None:
    with project(tmp_path / "project.db") as found:
        task = taken(found)
        said = ballot(answer_of(task, "dpo"))
        number = found.vote("ann", task.token, said)
        assert found.vote("ann", task.token, said) == number
        taken(found)
        assert found.vote("ann", task.token, said) == number
        assert [each.number for each in found.votes()] == [number]


def test_a_key_is_for_one_vote(tmp_path: Path) -> None:
    with project(tmp_path / "project.db") as found:
        task = taken(found)
        said = ballot("tie")
        found.vote("ann", task.token, said)
        with pytest.raises(VoteError) as refused:
            found.vote("ann", taken(found).token, replace(said, choice="both_bad"))
        assert refused.value.field == "key"


def test_two_pages_of_one_annotator_give_one_vote(tmp_path: Path) -> None:
    with project(tmp_path / "project.db") as found:
        task = taken(found)
        found.vote("ann", task.token, ballot("tie"))
        with pytest.raises(VoteError) as refused:
            found.vote("ann", task.token, ballot("tie"))
        assert refused.value.field == "token"


def test_a_token_is_its_annotators_alone(tmp_path: Path) -> None:
    with project(tmp_path / "project.db", 3, "ann", "bob") as found:
        task = taken(found, "ann")
        taken(found, "bob")
        with pytest.raises(VoteError) as refused:
            found.vote("bob", task.token, ballot("tie"))
        assert refused.value.field == "token"
        assert not list(found.votes())


def test_a_vote_holds_what_the_lease_says(tmp_path: Path) -> None:
    with project(tmp_path / "project.db", criteria=("helpful", "harmless")) as found:
        task = taken(found)
        dpo = answer_of(task, "dpo")
        said = ballot(
            dpo, strength=3, note="short", criteria={"helpful": dpo, "harmless": "tie"}, seconds=4.5, session="s1"
        )
        number = found.vote("ann", task.token, said)
        (stored,) = found.votes()
        assert stored.ballot == said
        assert (stored.number, stored.item, stored.annotator, stored.kind) == (number, 1, "ann", "compare")
        assert (stored.shown, stored.repeat, stored.undone) == (task.shown, False, False)


COMPARE = [
    ({"choice": "dpo"}, "choice"),
    ({"choice": "ranked"}, "choice"),
    ({"key": "short"}, "key"),
    ({"key": "é" * 9}, "key"),
    ({"session": "s" * 101}, "session"),
    ({"seconds": -1.0}, "seconds"),
    ({"seconds": float("nan")}, "seconds"),
    ({"strength": 4}, "strength"),
    ({"choice": "tie", "strength": 1}, "strength"),
    ({"note": "x" * 10_001}, "note"),
    ({"note": "\ud83d"}, "note"),
    ({"criteria": {"short": "A"}}, "criteria"),
    ({"criteria": {"helpful": "both_bad"}}, "criteria.helpful"),
    ({"choice": "skip", "criteria": {"helpful": "tie"}}, "criteria"),
    ({"ranking": (("A", "B"),)}, "ranking"),
    ({"text": "better", "text_of": "other"}, "text_of"),
    ({"text": " ", "text_of": "A"}, "text"),
    ({"text_of": "A"}, "text_of"),
    ({"choice": "skip", "text": "better", "text_of": "A"}, "text"),
]


@pytest.mark.parametrize(("said", "field"), COMPARE)
def test_what_a_comparison_must_not_say(said: dict[str, Any], field: str, tmp_path: Path) -> None:
    with project(tmp_path / "project.db", criteria=("helpful",)) as found:
        refused_of(found, {"choice": "A", **said}, field)


@pytest.mark.parametrize(
    ("settings", "said", "field"),
    [
        ({"allow_ties": False}, {"choice": "tie"}, "choice"),
        ({"allow_ties": False}, {"choice": "both_bad"}, "choice"),
        ({"allow_notes": False}, {"choice": "A", "note": "x"}, "note"),
        ({"kind": "rank"}, {"choice": "A"}, "choice"),
        ({"kind": "rank"}, {"choice": "ranked"}, "ranking"),
        ({"kind": "rank"}, {"choice": "ranked", "ranking": (("A",),)}, "ranking"),
        ({"kind": "rank"}, {"choice": "ranked", "ranking": (("A",), ("A", "B"))}, "ranking"),
        ({"kind": "rank"}, {"choice": "ranked", "ranking": (("A",), (), ("B",))}, "ranking"),
        ({"kind": "rank", "allow_ties": False}, {"choice": "ranked", "ranking": (("A", "B"),)}, "ranking"),
    ],
)
def test_what_a_project_does_not_take(
    settings: dict[str, Any], said: dict[str, Any], field: str, tmp_path: Path
) -> None:
    with project(tmp_path / "project.db", **settings) as found:
        refused_of(found, said, field)


@pytest.mark.parametrize(
    ("kind", "said", "field"),
    [
        ("thumb", {"choice": "tie"}, "choice"),
        ("thumb", {"choice": "up", "strength": 2}, "strength"),
        ("rewrite", {"choice": "rewritten"}, "text"),
        ("rewrite", {"choice": "up"}, "choice"),
    ],
)
def test_what_a_single_answer_is_not_asked(kind: str, said: dict[str, Any], field: str, tmp_path: Path) -> None:
    with project(tmp_path / "project.db", models=("dpo",), kind=kind) as found:
        refused_of(found, said, field)


def refused_of(found: Project, said: dict[str, Any], field: str) -> None:
    """A and B stand for the ids of the answers."""
    task = taken(found)
    ids = dict(zip("AB", (each.id for each in task.item.answers), strict=False))

    def meant(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(meant, value))
        if isinstance(value, dict):
            return {name: meant(each) for name, each in value.items()}
        return ids.get(value, value) if isinstance(value, str) else value

    with pytest.raises(VoteError) as refused:
        found.vote(
            "ann", task.token, Ballot(**{"key": "12345678", **{name: meant(each) for name, each in said.items()}})
        )
    assert refused.value.field == field
    assert not list(found.votes(undone=True))
    assert taken(found) == task  # the task is still open


def test_undo_takes_the_last_vote_back_and_shows_the_item_again(tmp_path: Path) -> None:
    with project(tmp_path / "project.db") as found:
        vote(found, "dpo")
        second = vote(found, "sft")
        opened = taken(found)
        undone = found.undo("ann")
        assert undone is not None
        assert undone.item == second.item.id
        again = taken(found)
        assert (again.item, again.shown) == (second.item, second.shown)
        assert again.token != second.token
        with pytest.raises(VoteError):
            found.vote("ann", opened.token, ballot("tie"))
        found.vote("ann", again.token, ballot("tie"))
        assert [each.ballot.choice for each in found.votes()][1:] == ["tie"]
        assert [each.undone for each in found.votes(undone=True)] == [False, True, False]
        assert taken(found).item == opened.item


def test_everything_can_be_undone_one_by_one(tmp_path: Path) -> None:
    with project(tmp_path / "project.db", 3) as found:
        items = [vote(found, "dpo").item.id for _ in range(3)]
        undone = [found.undo("ann") for _ in range(3)]
        assert [each.item for each in undone if each] == items[::-1]
        assert found.undo("ann") is None
        assert found.progress().votes == 0
        assert found.progress().missing == 3


def test_a_repeat_that_is_undone_comes_again_as_a_repeat(tmp_path: Path) -> None:
    with project(tmp_path / "project.db", 2, repeats=0.5) as found:
        vote(found, "dpo")
        vote(found, "dpo")
        assert vote(found, "sft").repeat
        assert found.next_task("ann") is None
        assert found.undo("ann") is not None
        assert taken(found).repeat
        vote(found, "dpo")
        assert found.next_task("ann") is None


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE votes SET choice = 'tie'",
        "DELETE FROM votes",
        "UPDATE undos SET vote = 2",
        "DELETE FROM undos",
        "INSERT INTO undos (vote, at) VALUES (1, 0)",
        "INSERT OR REPLACE INTO votes SELECT * FROM votes",
    ],
)
def test_the_file_refuses_to_change_events(statement: str, tmp_path: Path) -> None:
    with project(tmp_path / "project.db") as found:
        vote(found, "dpo")
        found.undo("ann")
    connection = PROJECT_FILE.open_for_writing(tmp_path / "project.db")
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute(statement)
    connection.close()
