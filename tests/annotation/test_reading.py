"""Judgements of votes, worked by hand."""

from __future__ import annotations

from pathlib import Path

from prefine.annotation.records import HumanJudgement
from tests.annotation.projects import answer_of, ballot, project, taken, vote


def said(judgement: HumanJudgement) -> tuple[str | None, str]:
    """The criterion, and the winner's model or tie."""
    models = dict(zip(judgement.answers, judgement.models, strict=True))
    return judgement.criterion, models.get(judgement.winner, judgement.winner)


def test_a_comparison_gives_one_judgement_and_one_for_each_criterion(tmp_path: Path) -> None:
    with project(tmp_path / "project.db", criteria=("helpful", "harmless")) as found:
        task = taken(found)
        dpo, sft = answer_of(task, "dpo"), answer_of(task, "sft")
        found.vote(
            "ann", task.token, ballot(dpo, strength=2, seconds=3.5, criteria={"harmless": sft, "helpful": "tie"})
        )
        judgements = found.judgements()
        assert {said(each) for each in judgements} == {(None, "dpo"), ("harmless", "sft"), ("helpful", "tie")}
        assert {each.answers for each in judgements} == {(sft, dpo)}  # as imported
        assert {each.first for each in judgements} == {task.shown[0]}
        whole = judgements[0]
        assert (whole.strength, whole.seconds, whole.repeat, whole.both_bad) == (2, 3.5, False, False)


def test_both_bad_is_a_tie_that_says_so_and_skips_and_undone_votes_say_nothing(tmp_path: Path) -> None:
    with project(tmp_path / "project.db") as found:
        vote(found, "both_bad")
        vote(found, "skip")
        vote(found, "dpo")
        found.undo("ann")
        (only,) = found.judgements()
        assert (only.winner, only.both_bad) == ("tie", True)


def test_a_ranking_of_four_gives_six_pairs(tmp_path: Path) -> None:
    models = ("a", "b", "c", "d")
    with project(tmp_path / "project.db", 1, models=models, kind="rank", criteria=("short",)) as found:
        task = taken(found)
        a, b, c, d = (answer_of(task, model) for model in models)
        found.vote("ann", task.token, ballot("ranked", ranking=((c,), (a, d), (b,)), criteria={"short": b}))
        judgements = found.judgements()
        whole = {each.models: said(each)[1] for each in judgements if each.criterion is None}
        assert whole == {
            ("a", "b"): "a",
            ("a", "c"): "c",
            ("a", "d"): "tie",
            ("b", "c"): "c",
            ("b", "d"): "d",
            ("c", "d"): "c",
        }
        assert {each.models: said(each)[1] for each in judgements if each.criterion} == {
            ("a", "b"): "b",
            ("b", "c"): "b",
            ("b", "d"): "b",
        }
        for each in judgements:
            assert task.shown.index(each.first) == min(task.shown.index(answer) for answer in each.answers)


def test_thumbs_are_on_one_answer_and_rewriting_judges_nothing(tmp_path: Path) -> None:
    with project(tmp_path / "thumbs.db", 2, models=("dpo",), kind="thumb") as found:
        vote(found, "up")
        vote(found, "down")
        assert [(each.models, each.winner) for each in found.judgements()] == [(("dpo",), "up"), (("dpo",), "down")]
    with project(tmp_path / "texts.db", 1, models=("dpo",), kind="rewrite") as found:
        task = taken(found)
        found.vote("ann", task.token, ballot("rewritten", text="Better.", text_of=task.shown[0]))
        assert found.judgements() == []
        assert found.progress().complete == 1


def test_repeats_are_marked(tmp_path: Path) -> None:
    with project(tmp_path / "project.db", 2, repeats=0.5) as found:
        for _ in range(3):
            vote(found, "dpo")
        assert [each.repeat for each in found.judgements()] == [False, False, True]
        (ann,) = found.progress().annotators
        assert (ann.votes, ann.repeats, found.progress().votes) == (3, 1, 2)
