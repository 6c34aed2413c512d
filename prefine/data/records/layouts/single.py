"""Demonstrations, prompts, and single answers without a verdict."""

from __future__ import annotations

from collections.abc import Callable

from prefine.data.reading.rows import RowError, kind_of
from prefine.data.records.answers import lone_answer, plain_answer
from prefine.data.records.layouts.pairs import alpaca_question
from prefine.data.records.layouts.shape import LeftOut, RowView, Shape
from prefine.data.records.turns import chat_turns, is_blocks, is_transcript, prompt_turns, said_text, without_answer
from prefine.records import Completion, Conversation, Demonstration, Message, Prompt

# --- Demonstrations ----------------------------------------------------------------------------------------------


def demonstration(row: RowView, messages: Conversation, supervise_from: int, column: str) -> Demonstration:
    """The record of a conversation in a column.

    Raises:
        LeftOut: all of its assistant turns are marked as not to be learned.
    """
    answers = [turn for turn in messages[supervise_from:] if turn.role == "assistant"]
    if answers and not any(turn.supervised for turn in answers):
        raise LeftOut(column, "has no turn that is to be learned (by train, loss or weight)")
    return Demonstration(messages=messages, supervise_from=supervise_from, **row.common)


def _chat(column: str) -> Callable[[RowView], list[Demonstration]]:
    def build(row: RowView) -> list[Demonstration]:
        turns = chat_turns(row[column], column)
        messages = row.conversation(turns)
        added = len(messages) - len(turns)
        first = _supervise_from(row, column)
        has_context = first != 0 or bool(row["history"])
        return [demonstration(row, messages, first + added if has_context else 0, column)]

    return build


def _supervise_from(row: RowView, column: str) -> int:
    """The index of the first learned turn among the turns read; the row counts those of its column."""
    first = row["supervise_from"] or 0
    if isinstance(first, bool) or not isinstance(first, int):
        raise RowError("supervise_from", f"is {kind_of(first)}, not a whole number")
    if first < 0:
        raise RowError("supervise_from", f"is {first}, and turns are counted from 0")
    if not 0 < first < len(row[column]):
        return first
    return len(chat_turns(row[column][:first], column, may_be_empty=True))


def _completed_prompt(row: RowView) -> list[Demonstration]:
    prompt = row.conversation(prompt_turns(row["prompt"], "prompt"))
    answer = row["completion"]
    if isinstance(answer, list) and not is_blocks(answer):
        said = chat_turns(answer, "completion")
    else:
        said = [Message(role="assistant", content=lone_answer(answer, "completion", is_transcript(row["prompt"])))]
    return [demonstration(row, (*prompt, *said), len(prompt), "completion")]


def _alpaca(row: RowView) -> list[Demonstration]:
    prompt = row.conversation(alpaca_question(row))
    answer = Message(role="assistant", content=said_text(row["output"], "output"))
    return [Demonstration(messages=(*prompt, answer), supervise_from=len(prompt), **row.common)]


CHAT = Shape("chat", ("messages",), _chat("messages"), may_have=frozenset({"supervise_from"}))
SHAREGPT = Shape("ShareGPT", ("conversations",), _chat("conversations"))
COMPLETED_PROMPT = Shape("prompt and answer", ("prompt", "completion"), _completed_prompt)
ALPACA = Shape("Alpaca", ("instruction", "output"), _alpaca, may_have=frozenset({"input"}))

# --- Prompts -----------------------------------------------------------------------------------------------------


def _asked(column: str) -> Callable[[RowView], list[Prompt]]:
    """A conversation as a prompt: without the last answer, if it ends with one."""

    def build(row: RowView) -> list[Prompt]:
        turns = without_answer(chat_turns(row[column], column))
        return [Prompt(prompt=row.conversation(turns), **row.common)]

    return build


def _instruction(row: RowView) -> list[Prompt]:
    return [Prompt(prompt=row.conversation(alpaca_question(row)), **row.common)]


def _prompt(row: RowView) -> list[Prompt]:
    return [Prompt(prompt=row.conversation(prompt_turns(row["prompt"], "prompt")), **row.common)]


PROMPTS = (
    Shape("chat", ("messages",), _asked("messages"), may_have=frozenset({"supervise_from"})),
    Shape("ShareGPT", ("conversations",), _asked("conversations")),
    Shape("Alpaca", ("instruction", "output"), _instruction, may_have=frozenset({"input"})),
    Shape("prompt", ("prompt",), _prompt),
)

# --- Completions -------------------------------------------------------------------------------------------------


def _answered(row: RowView) -> list[Completion]:
    """A prompt and one answer, which may be blank."""
    column = row.first("completion", "response")
    answer = row[column]
    empty = isinstance(answer, str) and not answer.strip()
    prompt = prompt_turns(row["prompt"], "prompt")
    said = answer if empty else lone_answer(answer, column, is_transcript(row["prompt"]))
    return [Completion(prompt=row.conversation(prompt), completion=said, **row.common)]


def _last_answer(column: str) -> Callable[[RowView], list[Completion]]:
    """A conversation whose last turn, the assistant's, is the answer."""

    def build(row: RowView) -> list[Completion]:
        *turns, last = chat_turns(row[column], column)
        if last.role != "assistant" or not turns:
            raise RowError(column, "does not end with an answer to something")
        return [
            Completion(
                prompt=row.conversation(turns), completion=plain_answer(last, column, learned=False), **row.common
            )
        ]

    return build


def _alpaca_answer(row: RowView) -> list[Completion]:
    said = lone_answer(row["output"], "output")
    return [Completion(prompt=row.conversation(alpaca_question(row)), completion=said, **row.common)]


COMPLETIONS = (
    Shape("prompt and answer", ("prompt", "completion or response"), _answered),
    Shape("chat", ("messages",), _last_answer("messages"), may_have=frozenset({"supervise_from"})),
    Shape("ShareGPT", ("conversations",), _last_answer("conversations")),
    Shape("Alpaca", ("instruction", "output"), _alpaca_answer, may_have=frozenset({"input"})),
)
