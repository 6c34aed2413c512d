"""Two answers to one prompt, of which one is preferred: layouts without a score for each answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefine.data.reading.rows import Problem, RowError, kind_of
from prefine.data.records.answers import (
    Pair,
    is_whole,
    lone_answer,
    margin_of,
    plain_answer,
    preferred_answer,
    prompted_pair,
    score_difference,
    split_pair,
)
from prefine.data.records.layouts.shape import RowView, Shape
from prefine.data.records.tool_calls import tools_of
from prefine.data.records.turns import chat_turns, is_transcript, prompt_turns, said_text
from prefine.records import Message, Preference

EQUAL_ANSWERS = Problem("rejected", "is the same text as chosen")
"""Why a pair without a difference is refused."""
_SCORES = frozenset(
    {"margin", "score_difference", "chosen_score", "rejected_score", "score_chosen", "score_rejected", "tie"}
)


def preference(row: RowView, pair: Pair, *, tie: bool | None = None, difference: float | None = None) -> Preference:
    """The record of a pair.

    Args:
        row: of the pair.
        pair: the prompt, the chosen and the rejected answer.
        tie: whether it is a tie; None: by the column `tie`.
        difference: of the answers' scores; None: by the columns of scores.

    Raises:
        RowError: equal answers; an invalid margin, score or tie.
    """
    turns, chosen, rejected = pair
    if chosen == rejected:
        raise RowError(EQUAL_ANSWERS.field, EQUAL_ANSWERS.reason)
    if tie is None:
        own = row["tie"]
        if not (own is None or isinstance(own, bool)):
            raise RowError("tie", f"is {kind_of(own)}, not true or false")
        tie = bool(own)
    return Preference(
        prompt=row.conversation(turns),
        chosen=chosen,
        rejected=rejected,
        margin=margin_of(row.value),
        score_difference=score_difference(row.value) if difference is None else difference,
        tie=tie,
        **row.common,
    )


def a_or_b(row: RowView, prompt: str, answers: tuple[str, str], preferred: int, **more: Any) -> Preference:
    """The record of two answers in columns of their own: the first (1), the second (2) or none (0) is preferred."""
    in_transcript = is_transcript(row[prompt])
    turns = prompt_turns(row[prompt], prompt)
    first, second = (lone_answer(row[name], name, in_transcript) for name in answers)
    pair = (turns, second, first) if preferred == 2 else (turns, first, second)
    return preference(row, pair, tie=preferred == 0, **more)


def _explicit(row: RowView) -> list[Preference]:
    prompt = row.first("prompt", "question")
    return [preference(row, prompted_pair(row[prompt], row["chosen"], row["rejected"], (prompt, "chosen", "rejected")))]


def _implicit(row: RowView) -> list[Preference]:
    return [preference(row, split_pair(row["chosen"], row["rejected"]))]


def _numbered(row: RowView) -> list[Preference]:
    return [a_or_b(row, "prompt", ("response_1", "response_2"), preferred_answer(row["preferred"]))]


def _after_chat(row: RowView) -> list[Preference]:
    column = row.first("conversations", "messages")
    turns = chat_turns(row[column], column)
    chosen, rejected = (lone_answer(row[name], name) for name in ("chosen", "rejected"))
    return [preference(row, (turns, chosen, rejected))]


def _answers_stand_alone(value: Mapping[str, Any]) -> bool:
    return not (is_whole(value.get("chosen")) or is_whole(value.get("rejected")))


def _holds_its_prompt(value: Mapping[str, Any]) -> bool:
    """Whether answers may contain their prompt: they do, or no prompt column is null by mistake."""
    return "prompt" not in value or not _answers_stand_alone(value)


def _other_ending(row: RowView) -> list[Preference]:
    *turns, last = chat_turns(row["messages"], "messages")
    if row["rejected_response"] is None:
        return [
            preference(row, split_pair(row["messages"], row["rejected_messages"], ("messages", "rejected_messages")))
        ]
    rejected = lone_answer(row["rejected_response"], "rejected_response")
    return [preference(row, (turns, plain_answer(last, "messages"), rejected))]


def _query(row: RowView) -> list[Preference]:
    fields = ("query", "response", "rejected_response")
    query, chosen, rejected = (row[name] for name in fields)
    return [preference(row, prompted_pair(query, chosen, rejected, fields))]


def _provider(row: RowView) -> list[Preference]:
    given = row["input"]
    if not isinstance(given, dict):
        raise RowError("input", f"is {kind_of(given)}, not an object with messages")
    turns = chat_turns(given.get("messages"), "input.messages")
    chosen, rejected = (lone_answer(row[name], name) for name in ("preferred_output", "non_preferred_output"))
    tools = tools_of(given, "input.") or row.common.get("tools", ())
    return [preference(RowView(row.value, {**row.common, "tools": tools}), (turns, chosen, rejected))]


def _alpaca(row: RowView) -> list[Preference]:
    chosen, rejected = (lone_answer(row[name], name) for name in ("chosen", "rejected"))
    return [preference(row, (alpaca_question(row), chosen, rejected))]


def alpaca_question(row: RowView) -> list[Message]:
    """Alpaca's `instruction` and `input` as one user turn."""
    question = said_text(row["instruction"], "instruction")
    context = row["input"]
    if context is not None and context != "":
        question = f"{question}\n\n{said_text(context, 'input')}"
    return [Message(role="user", content=question)]


EXPLICIT = Shape("explicit pair", ("prompt or question", "chosen", "rejected"), _explicit, may_have=_SCORES)
IMPLICIT = Shape("implicit pair", ("chosen", "rejected"), _implicit, may_have=_SCORES, when=_holds_its_prompt)
A_OR_B = Shape(
    "A/B",
    ("prompt", "response_1", "response_2", "preferred"),
    _numbered,
    may_have=frozenset({"margin"}),
    may_be_null=frozenset({"preferred"}),
)
AFTER_CHAT = Shape(
    "chat and two answers",
    ("conversations or messages", "chosen", "rejected"),
    _after_chat,
    may_have=_SCORES,
    when=_answers_stand_alone,
)
OTHER_ENDING = Shape(
    "chat and another answer", ("messages", "rejected_response or rejected_messages"), _other_ending, may_have=_SCORES
)
QUERY = Shape("query and two answers", ("query", "response", "rejected_response"), _query, may_have=_SCORES)
PROVIDER = Shape(
    "provider pair", ("input", "preferred_output", "non_preferred_output"), _provider, may_have=frozenset({"margin"})
)
ALPACA_PAIR = Shape(
    "Alpaca pair",
    ("instruction", "chosen", "rejected"),
    _alpaca,
    may_have=_SCORES | {"input"},
    when=_answers_stand_alone,
)

PAIRS = (EXPLICIT, A_OR_B, PROVIDER, AFTER_CHAT, OTHER_ENDING, QUERY, ALPACA_PAIR, IMPLICIT)
"""The first that fits is taken."""
