"""Arena votes: read strictly, matched with answers, written as FastChat does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefine.comparisons.result import AnswerOf, AnswerRow
from prefine.comparisons.votes import ArenaVote, counted, read_votes, votes_of, write_votes
from prefine.data.records.convert import records_of
from prefine.errors import DataError
from prefine.records import Preference


def talk(answer: str, question: str = "2 + 2?") -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def vote(**changes: Any) -> dict[str, Any]:
    """A line of FastChat's cleaned battles."""
    fields = {
        "question_id": "q1",
        "model_a": "runs/dpo",
        "model_b": "runs/sft",
        "winner": "model_a",
        "judge": "arena_user_1",
        "conversation_a": talk("four"),
        "conversation_b": talk("five"),
        "turn": 1,
        "anony": True,
        "language": "English",
        "tstamp": 1.5,
    }
    return {name: value for name, value in (fields | changes).items() if value is not ...}


def rows(*ids: str, category: str = "") -> list[AnswerRow]:
    four, five = (AnswerOf(text=text, tokens=1, ended=True) for text in ("four", "five"))
    return [AnswerRow(id=each, prompt=talk("")[:1], candidate=four, baseline=five) for each in ids]


def written(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def winners(*votes: dict[str, Any], ids: tuple[str, ...] = ("q1",)) -> tuple[list[str | None], dict[str, int]]:
    found = counted([ArenaVote.model_validate(each) for each in votes], rows(*ids), "runs/dpo", "runs/sft")
    assert found.used + sum(found.left_out.values()) == len(votes)
    return list(found.winners), found.left_out


def test_a_file_as_fastchat_writes_it(tmp_path: Path) -> None:
    file = written(
        tmp_path / "votes.jsonl", vote(), "", vote(question_id=2, dedup_tag={"high_freq": False}), vote(judge=...)
    )
    votes, refused = read_votes(file)
    assert ([each.question_id for each in votes], refused) == (["q1", 2, "q1"], [])
    assert votes[1].model_extra == {"dedup_tag": {"high_freq": False}}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "is not valid JSON"),
        ("[]", "valid dictionary"),
        (vote(winner="A"), "winner: Input should be 'model_a', 'model_b', 'tie' or 'tie (bothbad)'"),
        (vote(winner=...), "winner: Field required"),
        (vote(model_b="runs/dpo"), "model_a and model_b are both 'runs/dpo'"),
        (vote(conversation_a=[]), "conversation_a: is not a prompt with an assistant's answer"),
        (vote(conversation_b=talk("x")[:1] * 2), "conversation_b: is not a prompt"),
        (vote(conversation_b=talk("five", "3 + 3?")), "do not ask the same"),
        (
            vote(conversation_a=[{"role": "user", "content": 3}]),
            "conversation_a.0.content: Input should be a valid string",
        ),
        (vote(tstamp="yesterday"), "tstamp"),
        ("9" * 9 * 1024 * 1024, "is longer than 8 MiB"),
    ],
)
def test_a_line_that_is_no_vote_is_named_with_its_reason(tmp_path: Path, line: Any, reason: str) -> None:
    file = written(tmp_path / "votes.jsonl", vote(), line, vote())
    votes, refused = read_votes(file)
    assert len(votes) == 2
    assert [each.place for each in refused] == [f"{file}, line 2"]
    assert reason in str(refused[0])
    with pytest.raises(DataError, match="line 1"):
        read_votes(written(tmp_path / "bad.jsonl", line))


def test_files_without_votes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no vote"):
        read_votes(written(tmp_path / "empty.jsonl"))
    with pytest.raises(DataError, match="cannot be read"):
        read_votes(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_votes(tmp_path / "no\0ne.jsonl")


def test_the_side_of_a_model_does_not_matter() -> None:
    swapped = {
        "model_a": "runs/sft",
        "model_b": "runs/dpo",
        "conversation_a": talk("five"),
        "conversation_b": talk("four"),
    }
    assert winners(vote()) == (["candidate"], {})
    assert winners(vote(**swapped)) == (["baseline"], {})
    assert winners(vote(**swapped, winner="model_b")) == (["candidate"], {})
    assert winners(vote(winner="tie (bothbad)")) == (["tie"], {})
    assert winners(vote(model_a="dpo", model_b="sft")) == (["candidate"], {})


@pytest.mark.parametrize("typed", ["runs/dpo/", "./runs/dpo", "runs//dpo"])
def test_a_model_has_one_name_however_it_is_typed(typed: str) -> None:
    given = [ArenaVote.model_validate(vote())]
    assert counted(given, rows("q1"), typed, "runs/sft/").winners == ["candidate"]
    assert winners(vote(model_a=typed)) == (["candidate"], {})
    assert counted(given, rows("q1"), typed, "http://host:1/v1#m").left_out != {}
    judged = [row.model_copy(update={"verdicts": {"judge": "tie"}}) for row in rows("a")]
    with pytest.raises(DataError, match="both models are called 'runs/dpo'"):
        votes_of(judged, "judge", typed, "runs/dpo")


def test_several_votes_on_a_prompt_are_decided_by_majority() -> None:
    people = [vote(judge=f"person {number}") for number in range(3)]
    assert winners(people[0], people[1], vote(judge="x", winner="model_b")) == (["candidate"], {})
    assert winners(people[0], vote(judge="x", winner="model_b")) == (["tie"], {})
    assert winners(people[0], vote(judge="x", winner="tie")) == (["candidate"], {})
    assert winners(people[0], ids=("q1", "q2"))[0] == ["candidate", None]


def test_a_judges_last_vote_counts() -> None:
    last = vote(winner="model_b", tstamp=9.0)
    assert winners(last, vote()) == (["baseline"], {"the same judge voted again later": 1})
    unknown = [vote(judge=""), vote(judge="")]
    assert winners(*unknown) == (["candidate"], {})


def test_a_later_vote_on_other_answers_replaces_none() -> None:
    seed_2 = vote(conversation_a=talk("4"), winner="model_b", tstamp=9.0)
    assert winners(vote(), seed_2) == (["candidate"], {"the answers are not the ones compared": 1})
    assert winners(seed_2, vote()) == (["candidate"], {"the answers are not the ones compared": 1})


def test_a_judge_who_names_the_models_in_two_ways_votes_once() -> None:
    again = vote(model_a="dpo", model_b="sft", winner="model_b", tstamp=9.0)
    assert winners(vote(), again) == (["baseline"], {"the same judge voted again later": 1})


def test_a_vote_on_another_question_with_the_same_id_is_left_out() -> None:
    other = {"conversation_a": talk("four", "3 + 1?"), "conversation_b": talk("five", "3 + 1?")}
    assert winners(vote(**other)) == ([None], {"the prompt is not the one compared": 1})
    longer = {
        name: [{"role": "system", "content": "Be brief."}, *talk(answer)]
        for name, answer in (("conversation_a", "four"), ("conversation_b", "five"))
    }
    assert winners(vote(**longer)) == (["candidate"], {})


def test_votes_on_something_else_are_left_out_with_a_reason() -> None:
    found, left_out = winners(
        vote(question_id="q9"), vote(model_b="gpt"), vote(conversation_a=talk("4")), vote(judge="x", winner="model_b")
    )
    assert found == ["baseline"]
    assert left_out == {
        "question_id is no id of the answers": 1,
        "the models are not runs/dpo and runs/sft": 1,
        "the answers are not the ones compared": 1,
    }


def test_verdicts_that_no_vote_can_hold_are_refused_in_words() -> None:
    (row,) = rows("a")
    judged = row.model_copy(update={"verdicts": {"judge": "tie"}})
    with pytest.raises(DataError, match="both models are called 'answers'"):
        votes_of([judged], "judge", "answers", "answers")
    with pytest.raises(DataError, match="row 'a' has no prompt"):
        votes_of([row, judged.model_copy(update={"prompt": []})], "judge", "one", "two")
    assert len(votes_of([row.model_copy(update={"prompt": []}), judged], "judge", "one", "two")) == 1


def test_verdicts_become_votes_and_come_back(tmp_path: Path) -> None:
    verdicts: list[Any] = ["candidate", "baseline", "tie", None]
    given = [
        row.model_copy(update={"verdicts": {"judge": winner} if winner else {}})
        for row, winner in zip(rows("a", "b", "c", "d"), verdicts, strict=True)
    ]
    file = tmp_path / "votes.jsonl"
    write_votes(file, votes_of(given, "judge", "runs/dpo", "runs/sft"))
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [list(line) for line in lines] == [list(vote())] * 3
    votes, refused = read_votes(file)
    assert not refused
    assert counted(votes, given, "runs/dpo", "runs/sft").winners == verdicts
    # and a training run reads them as preferences
    pairs = [records_of(line, Preference)[0] for line in lines]
    assert [(pair.chosen, pair.tie) for pair in pairs] == [("four", False), ("five", False), ("four", True)]
