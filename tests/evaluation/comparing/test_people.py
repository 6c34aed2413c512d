"""People's votes on a comparison, from an annotation project itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefine.annotation.importing import items_of_comparison
from prefine.annotation.project import Project
from prefine.annotation.records import ProjectSettings
from prefine.comparisons.result import Comparison, Side, Verdict
from prefine.errors import DataError
from prefine.evaluation.comparing.folder import MARK
from prefine.evaluation.comparing.judged import judge_comparison
from prefine.evaluation.comparing.people import find_votes
from prefine.feedback.database import open_for_writing
from prefine.report.comparison.reading import read_answers, read_comparison
from tests.annotation.projects import project, taken, vote


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An evaluation of `runs/dpo/`, as a shell completes it; 3 of its 20 answers are blank, 2 are the baseline's."""
    said = ["", " ", "\u200b", "old 3", "old 4", *(f"new {number}" for number in range(5, 20))]
    answers = [
        {
            "id": f"q{number}",
            "prompt": [{"role": "user", "content": f"Question {number}?"}],
            "candidate": {"text": text, "tokens": 2, "ended": True},
            "baseline": {"text": f"old {number}", "tokens": 2, "ended": True},
        }
        for number, text in enumerate(said)
    ]
    comparison = Comparison(
        prefine="0",
        made_at="2026-11-26",
        candidate=Side(name="runs/dpo/", kind="run"),
        baseline=Side(name="./runs/sft", kind="run"),
        prompts={"asked": 20, "count": 20},
        sampling={},
        verdict=Verdict(decision="no difference shown", decided_by="", sentence="Nothing."),
    )
    made = tmp_path / "eval"
    made.mkdir()
    (made / ".lock").write_bytes(MARK)
    (made / "report.json").write_text(comparison.model_dump_json())
    (made / "answers.jsonl").write_text("".join(json.dumps(each) + "\n" for each in answers))
    return made


def voted(folder: Path, path: Path) -> Path:
    """A project of the evaluation's answers, in which ann prefers the candidate's wherever she is asked."""
    names = "runs/dpo/", "./runs/sft"
    with Project.create(path, ProjectSettings(order="given")) as made:
        items = items_of_comparison(read_answers(folder), *names, "compare").items
        assert made.add_items(items) == 15
        made.join("ann")
        for _ in items:
            vote(made, "runs/dpo")
        assert made.next_task("ann") is None
    return path


def test_a_project_is_read_as_it_is_and_blank_answers_lose(folder: Path) -> None:
    voted(folder, folder / "project.db")
    for votes in (folder / "project.db", folder):
        (rate,) = judge_comparison([folder], votes=votes).win_rates
        assert (rate.wins, rate.ties, rate.losses) == (15, 2, 3)
        assert (rate.failed, rate.spent) == ({}, {"votes": 15.0})
    assert rate.warnings[:2] == [
        "The candidate's answer is blank on 3 prompts that nobody voted on, which count as 3 losses.",
        "Both answers are the same on 2 prompts that nobody voted on, which count as 2 ties.",
    ]
    assert [row.verdicts["people"] for row in read_answers(folder)][:6] == [
        *["baseline"] * 3,
        "tie",
        "tie",
        "candidate",
    ]
    assert "which count as 3 losses" in (folder / "report.html").read_text()
    assert read_comparison(folder).verdict.decided_by == "people"


def test_votes_of_a_project_that_cannot_be_used_are_counted(folder: Path, tmp_path: Path) -> None:
    path = voted(folder, tmp_path / "votes.db")
    with Project(path) as found:
        found.add_items(items_of_comparison(read_answers(folder), "runs/ppo", "runs/sft", "compare").items)
        vote(found, "runs/ppo")
    (rate,) = judge_comparison([folder], votes=path).win_rates
    assert rate.warnings[0] == "1 of 16 votes are not used: the models are not runs/dpo/ and ./runs/sft."


def test_what_holds_no_votes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder without project\.db\. Name an annotation project, or a file"):
        find_votes(tmp_path)
    open_for_writing(tmp_path / "feedback.db").close()
    with pytest.raises(DataError, match="not one with a project of prefine annotate"):
        find_votes(tmp_path / "feedback.db")
    project(tmp_path / "project.db").close()
    with pytest.raises(DataError, match=r"project\.db holds no vote on two answers\. Let people compare"):
        find_votes(tmp_path)
    with project(tmp_path / "thumbs.db", models=("sft",), kind="thumb") as thumbs:
        task = taken(thumbs)
        vote(thumbs, "up")
    assert len(task.item.answers) == 1
    with pytest.raises(DataError, match=r"on two answers: is on a single answer \(1\)"):
        find_votes(tmp_path / "thumbs.db")
