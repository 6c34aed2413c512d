"""Items of a project in the order of the reward heads' disagreement: with given scores, and by the verbs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefine.annotation.project import Project
from prefine.annotation.records import AnnotationItem, JudgedAnswer, Kind, ProjectSettings, PromptTurn
from prefine.cli.app import main
from prefine.errors import DataError
from prefine.evaluation.active_choice import order_by_disagreement
from prefine.models.scoring.scorer import Question, RewardModel, Score

TURNS = (PromptTurn("system", "Be brief."), PromptTurn("user", "Why?"))


class GivenScores(RewardModel):
    """Scores of each answer by its text: its heads' scores, or "long" for an answer that leaves its prompt no room."""

    name, scale, tokenizer = "given", None, None

    def __init__(self) -> None:
        self.asked: list[Question] = []

    def score(self, questions: Iterable[Question]) -> Iterator[list[Score] | None]:
        for question in questions:
            self.asked.append(question)
            if "long" in question.answers:
                yield None
                continue
            heads = [tuple(map(float, text.split())) for text in question.answers]
            yield [Score(sum(each), each, 1) for each in heads]

    def lengths(self, question: Question) -> list[int] | None:
        return None

    @property
    def network(self) -> Any:
        return None


def made(path: Path, *texts: tuple[str, ...], kind: Kind = "compare") -> Project:
    project = Project.create(path, ProjectSettings(kind=kind, seed=1))
    project.add_items(
        AnnotationItem(0, str(n), TURNS, "", tuple(JudgedAnswer("", text) for text in each))
        for n, each in enumerate(texts)
    )
    return project


def test_what_the_heads_disagree_on_is_handed_out_first(tmp_path: Path) -> None:
    """Forty items on which both heads agree, one on which they do not, one without a score. A fifth of the places is
    filled by chance, so that the item is first with a chance of 0.8 and more; the seed is such a one."""
    reward = GivenScores()
    agreed = [(f"{n} {n}", "0 0") for n in range(1, 41)]
    with made(tmp_path / "project.db", ("1", "long"), *agreed, ("9 -9", "-9 9")) as project:
        seen: list[int] = []
        assert order_by_disagreement(project, reward, seen.append) == 1
        assert project.settings.order == "priority"
        assert seen == [*range(1, 43)]
        assert [turn.role for turn in reward.asked[0].prompt] == ["system", "user"]
        project.join("ann")
        task = project.next_task("ann")
        assert task is not None and task.item.name == "41"
    with made(tmp_path / "other.db", ("1", "long"), ("1 2", "2 1")) as project:
        order_by_disagreement(project, reward)
        project.join("ann")
        task = project.next_task("ann")
        assert task is not None and task.item.name == "1"


@pytest.mark.parametrize("kind", ["thumb", "rewrite"])
def test_items_of_one_answer_have_no_such_order(tmp_path: Path, kind: Kind) -> None:
    refusal = pytest.raises(DataError, match=f"an item of kind {kind} has one answer")
    with made(tmp_path / "project.db", ("1 2",), kind=kind) as project, refusal:
        order_by_disagreement(project, GivenScores())


def refused(*arguments: str) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["annotate", *arguments])
    assert leaving.value.code == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--order", "disagreement"], "--order: the order disagreement is that of a reward model's heads"),
        (["--order", "given", "--reward", "m"], "--order: 'given' leaves the reward model without effect"),
        (["--reward", "none"], "--reward: "),
        (["--reward", "none", "--kind", "thumb"], "--reward: an item of kind thumb has one answer"),
    ],
)
def test_an_order_that_cannot_be_is_refused_before_anything_is_made(
    options: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text('{"prompt": "Q", "chosen": "a", "rejected": "b"}\n')
    refused("import", "pairs.jsonl", *options)
    shown = capsys.readouterr()
    assert shown.err.startswith(f"prefine: {told}") or told in shown.err
    assert shown.err.count("\n") == 1 and not Path("project.db").exists()
