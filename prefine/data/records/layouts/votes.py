"""One answer with a thumb up or down."""

from __future__ import annotations

from prefine.data.reading.rows import RowError
from prefine.data.records.answers import lone_answer, plain_answer, vote_label
from prefine.data.records.layouts.pairs import alpaca_question
from prefine.data.records.layouts.shape import RowView, Shape
from prefine.data.records.turns import chat_turns, is_transcript, prompt_turns
from prefine.records import Message, Vote

_LABELS = ("label", "kto_tag")
_LABEL = " or ".join(_LABELS)


def _label(row: RowView, column: str) -> bool:
    try:
        return vote_label(row[column])
    except RowError as error:
        raise RowError(column, error.problem.reason) from None


def _vote(row: RowView, turns: list[Message], completion: str) -> list[Vote]:
    labels = {column: _label(row, column) for column in _LABELS if row[column] is not None}
    if len(set(labels.values())) > 1:
        raise RowError(_LABELS[1], f"contradicts {_LABELS[0]}")
    label = next(iter(labels.values())) if labels else _label(row, row.first(*_LABELS))
    return [Vote(prompt=row.conversation(turns), completion=completion, label=label, **row.common)]


def _prompted(row: RowView) -> list[Vote]:
    answer = row.first("completion", "response")
    said = lone_answer(row[answer], answer, is_transcript(row["prompt"]))
    return _vote(row, prompt_turns(row["prompt"], "prompt"), said)


def _chat(row: RowView) -> list[Vote]:
    column = row.first("messages", "conversations")
    *turns, last = chat_turns(row[column], column)
    return _vote(row, turns, plain_answer(last, column))


def _alpaca(row: RowView) -> list[Vote]:
    return _vote(row, alpaca_question(row), lone_answer(row["output"], "output"))


VOTES = (
    Shape("vote", ("prompt", "completion or response", _LABEL), _prompted),
    Shape("labelled chat", ("messages or conversations", _LABEL), _chat),
    Shape("labelled Alpaca", ("instruction", "output", _LABEL), _alpaca, may_have=frozenset({"input"})),
)
