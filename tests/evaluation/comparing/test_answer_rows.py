"""Which prompts are compared, and what is said of those that are not; by hand."""

from __future__ import annotations

import pytest

from prefine.errors import DataError
from prefine.evaluation.comparing.answer_rows import add_rows
from prefine.evaluation.comparing.answering import SideAnswer
from prefine.evaluation.comparing.gathered import Gathered
from prefine.evaluation.comparing.questions import EvaluationPrompt
from prefine.records import Message

TOOLS = ({"type": "function", "function": {"name": "f"}},)


def gathered(candidate: list[SideAnswer], baseline: list[SideAnswer], *, same_tokens: bool = True) -> Gathered:
    prompts = [EvaluationPrompt(f"q{i}", (Message(role="user", content=f"q {i}"),), TOOLS) for i in range(2)]
    found = Gathered(same_tokens=same_tokens)
    add_rows(found, prompts, {"candidate": candidate, "baseline": baseline}, 1, {}, [])
    return found


def answer(text: str = "yes", cut: str = "", ids: tuple[int, ...] = (1, 2)) -> SideAnswer:
    return SideAnswer(text=text, ids=ids, tokens=len(ids), ended=True, cut=cut)


def test_a_prompt_that_one_model_was_asked_in_part_is_another_question() -> None:
    found = gathered([answer(), answer()], [answer(), answer(cut="2 turns")])
    assert [row.id for row in found.rows] == ["q0"]
    assert dict(found.left_out) == {
        "the prompt does not fit the context of one of the models, which was asked only a part of it": 1
    }


def test_a_prompt_that_both_models_were_asked_in_the_same_part_stays_with_a_warning() -> None:
    found = gathered([answer(), answer(cut="2 turns")], [answer(), answer(cut="2 turns")])
    assert [row.id for row in found.rows] == ["q0", "q1"]
    (warning,) = found.warnings
    assert warning.startswith("1 prompt did not fit the models' context")
    with pytest.raises(DataError, match="no prompt was answered by both models"):
        gathered([answer(cut="2 turns")] * 2, [answer(cut="3 turns")] * 2)


def test_repetition_is_that_of_words_in_both_answers_where_tokens_differ() -> None:
    """Tokens that repeat in a text that does not: an endpoint's tokens are not known, so words count on both sides."""
    stuck = answer("one two three", ids=(5,) * 9)
    same = gathered([stuck, stuck], [answer(ids=()), answer(ids=())])
    other = gathered([stuck, stuck], [answer(ids=()), answer(ids=())], same_tokens=False)
    assert [found.rows[0].candidate.degenerate for found in (same, other)] == ["stuck", None]


def test_tools_stay_with_their_prompt() -> None:
    assert gathered([answer()] * 2, [answer()] * 2).rows[0].tools == list(TOOLS)
