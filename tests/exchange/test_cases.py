"""Rows as cases and battles."""

from __future__ import annotations

from collections import Counter
from typing import Any

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
            ("4", "x", "y", {"reference": "r", "tools": [{"type": "function"}]}),
        )
    ]
    found = suite_of_answers(rows)
    assert [(case.id, case.expected, case.category) for case in found.cases] == [("1", ("r",), "c")]
    assert [(each.id, each.better, sorted(each.sides)) for each in found.battles] == [
        ("1", None, ["baseline", "candidate"])
    ]
    assert found.left_out == Counter(
        {
            "has the same answer twice": 1,
            "has a blank answer": 1,
            "has tools, which these formats cannot hold": 1,
        }
    )


def test_turns_that_are_more_than_text_are_left_out_and_several_answers_are_one_case() -> None:
    text = [{"role": "user", "content": "Q"}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    prompts = {
        "blocks": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "call": [*text, call],
        "tool": [*text, {"role": "tool", "content": "4"}],
        "s": text,
        "s#2": text,
    }
    rows = [
        AnswerRow(id=name, prompt=turns, reference="r", candidate=answer("x"), baseline=answer("y"))
        for name, turns in prompts.items()
    ]
    found = suite_of_answers(rows)
    assert ([case.id for case in found.cases], [each.id for each in found.battles]) == (["s"], ["s", "s#2"])
    assert found.left_out == Counter(
        {
            "has tools, which these formats cannot hold": 2,
            "has content other than text, which these formats cannot hold": 1,
        }
    )


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"expected": 0}, ("0",)),
        ({"expected": 0.0}, ("0.0",)),
        ({"references": [0, "zero"]}, ("0", "zero")),
        ({"references": [], "reference": 0}, ("0",)),
        ({"expected": True}, None),
        ({"expected": [False]}, None),
        ({"expected": None}, None),
        ({"expected": ""}, None),
    ],
)
def test_zero_is_an_expected_answer_and_a_truth_value_is_none(
    extra: dict[str, Any], expected: tuple[str, ...] | None
) -> None:
    found = suite_of_records([Prompt(prompt=prompt("What is 3 - 3?"), extra=extra)])
    assert [case.expected for case in found.cases] == ([] if expected is None else [expected])
    assert found.left_out.total() == (expected is None)


def test_a_single_case_is_left_out_beside_battles() -> None:
    (case,) = suite_of_records([Prompt(prompt=prompt("a"), extra={"reference": "x"})]).cases
    suite = Suite([case], battles().battles)
    suite.require()
    assert (suite.cases, len(suite.battles)) == ([], 6)
    assert suite.left_out == Counter({"is the only one of the cases, and a result needs 2": 1})
    with pytest.raises(DataError, match="only one of the cases can be written"):
        Suite([case], battles().battles[:1]).require()


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
