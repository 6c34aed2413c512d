"""Rows as cases and battles."""

from __future__ import annotations

from collections import Counter

import pytest

from prefine.comparisons.result import AnswerOf, AnswerRow
from prefine.errors import DataError
from prefine.exchange.cases import Suite, suite_of_answers, suite_of_records
from prefine.records import Demonstration, Message, Preference, Prompt
from tests.exchange.suites import battles, prompt


def test_the_last_learned_turn_of_a_demonstration_is_expected() -> None:
    turns = [("system", "S"), ("user", "1"), ("assistant", "one"), ("user", "2"), ("assistant", "two")]
    messages = tuple(Message(role=role, content=text) for role, text in turns)
    (case,) = suite_of_records([Demonstration(messages=messages, id="d")]).cases
    assert (case.id, case.expected) == ("d", ("two",))
    assert [turn["content"] for turn in case.prompt] == ["S", "1", "one", "2"]


def test_what_cannot_be_written_is_counted() -> None:
    tools = ({"type": "function", "function": {"name": "f"}},)
    found = suite_of_records(
        [
            Prompt(prompt=prompt("a")),
            Prompt(prompt=prompt("b"), extra={"reference": " "}),
            Prompt(prompt=prompt("c"), extra={"reference": "x"}, tools=tools),
            Preference(prompt=prompt("d"), chosen="1", rejected="2", tie=True),
            Prompt(prompt=prompt("e"), extra={"reference": 4}),
        ]
    )
    assert [(case.id, case.expected) for case in found.cases] == [("4", ("4",))]
    assert found.left_out == Counter(
        {"has no expected answer": 2, "has tools, which these formats cannot hold": 1, "is a tie": 1}
    )


def test_the_order_of_answers_says_nothing_and_does_not_depend_on_which_is_better() -> None:
    found = battles().battles
    assert {battle.sides for battle in found} == {("chosen", "rejected"), ("rejected", "chosen")}
    for battle in found:
        assert battle.answers[battle.sides.index("chosen")].startswith("good")
    swapped = suite_of_records(
        [Preference(prompt=prompt(f"Q{n}"), chosen=f"bad {n}", rejected=f"good {n} {{x}}") for n in range(6)]
    ).battles
    assert [battle.answers for battle in swapped] == [battle.answers for battle in found]


def answer(text: str) -> AnswerOf:
    return AnswerOf(text=text, tokens=1, ended=True)


def test_an_evaluation_gives_battles_and_where_there_are_references_cases() -> None:
    rows = [
        AnswerRow(id=name, prompt=[{"role": "user", "content": "Q"}], candidate=answer(a), baseline=answer(b), **rest)
        for name, a, b, rest in (
            ("1", "x", "y", {"reference": "r", "category": "c"}),
            ("2", "x", "x", {}),
            ("3", " ", "y", {}),
        )
    ]
    found = suite_of_answers(rows)
    assert [(case.id, case.expected, case.category) for case in found.cases] == [("1", ("r",), "c")]
    assert [(each.id, each.better, sorted(each.sides)) for each in found.battles] == [
        ("1", None, ["baseline", "candidate"])
    ]
    assert found.left_out == Counter({"has twice the same answer": 1, "has a blank answer": 1})


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        (Suite(left_out=Counter({"is a tie": 3})), r"no row can be written: is a tie \(3\)\. Give preference pairs"),
        (Suite(battles=battles().battles[:1]), r"only one of the battles can be written, and a result needs 2"),
    ],
)
def test_too_little_is_refused(suite: Suite, message: str) -> None:
    with pytest.raises(DataError, match=message):
        suite.require()
