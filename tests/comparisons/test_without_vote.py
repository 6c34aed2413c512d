from __future__ import annotations

import pytest

from prefine.comparisons.result import AnswerOf, AnswerRow, Winner
from prefine.comparisons.without_vote import verdict_without_vote, with_verdicts_without_vote


def row(candidate: str, baseline: str) -> AnswerRow:
    now, was = (AnswerOf(text=text, tokens=1, ended=True) for text in (candidate, baseline))
    return AnswerRow(id="1", prompt=[], candidate=now, baseline=was)


def rows(blank: int, equal: int, others: int) -> list[AnswerRow]:
    return [row("", "old")] * blank + [row("same", "same")] * equal + [row("new", "old")] * others


@pytest.mark.parametrize(
    ("candidate", "baseline", "verdict"),
    [
        ("", "old", "baseline"),
        ("new", " \u200b\n", "candidate"),
        ("same", "same", "tie"),
        ("", "  ", "tie"),
        ("new", "old", None),
        ("same", "same ", None),
    ],
)
def test_what_nobody_has_to_look_at(candidate: str, baseline: str, verdict: Winner | None) -> None:
    assert verdict_without_vote(row(candidate, baseline)) == verdict


def test_blank_answers_lose_and_equal_ones_tie_without_a_vote() -> None:
    """People voted on all 17 prompts that they were asked about."""
    found = with_verdicts_without_vote([None] * 5 + ["candidate"] * 17, rows(3, 2, 17))
    assert found.winners == ["baseline"] * 3 + ["tie"] * 2 + ["candidate"] * 17
    assert found.notes == [
        "The candidate's answer is blank on 3 prompts that nobody voted on, which count as 3 losses.",
        "Both answers are the same on 2 prompts that nobody voted on, which count as 2 ties.",
    ]


def test_they_do_not_outweigh_votes_on_a_part_of_the_prompts() -> None:
    """18 of 180 prompts have a vote, so 2 of 20 blank answers count."""
    found = with_verdicts_without_vote([None] * 20 + ["candidate"] * 18 + [None] * 162, rows(20, 0, 180))
    assert [found.winners.count(each) for each in ("candidate", "baseline", None)] == [18, 2, 180]
    assert found.notes == [
        "The candidate's answer is blank on 20 prompts that nobody voted on, which count as 2 losses, as people voted "
        "on 18 of the other 180."
    ]
    nobody = with_verdicts_without_vote([None] * 30, rows(10, 0, 20))
    assert nobody.winners == [None] * 30


def test_a_vote_comes_before_the_rule() -> None:
    found = with_verdicts_without_vote(["candidate", "candidate"], [row("", "old"), row("new", "old")])
    assert (found.winners, found.notes) == (["candidate", "candidate"], [])


def test_where_people_need_not_look_anywhere_all_counts() -> None:
    assert with_verdicts_without_vote([None] * 4, rows(4, 0, 0)).winners == ["baseline"] * 4
