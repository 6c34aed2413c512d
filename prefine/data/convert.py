"""A row -> a record of the wanted kind. Every shape of docs/data.md is one entry of a table here.

The columns of a row choose its shape; its values are then checked strictly. A file may hold several shapes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError

from prefine.data.answers import (
    lone_answer,
    margin_of,
    preferred_answer,
    prompted_pair,
    score_difference,
    split_pair,
    vote_label,
)
from prefine.data.rows import MAX_TEXT_CHARACTERS, RowError, Unwritable, kind_of
from prefine.data.turns import Turn, chat_turns, is_transcript, prompt_turns, said_text
from prefine.records import Completion, Conversation, Demonstration, Message, Preference, Prompt, Record, Vote

R = TypeVar("R", bound=Prompt | Demonstration)

_COMMON = frozenset({"id", "system", "extra"})
_SCORES = frozenset({"margin", "score_difference", "chosen_score", "rejected_score", "score_chosen", "score_rejected"})


@dataclass(frozen=True)
class Shape:
    """One way to write a record down: the columns it needs, those it may have, and how to read them."""

    name: str
    needs: tuple[str, ...]
    may_have: frozenset[str]
    build: Callable[[dict[str, Any], dict[str, Any]], Record]
    turns_column: str

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.needs)})"

    def reads(self, column: str) -> bool:
        """Whether the record depends on this column; what else a row has is kept beside it in `extra`."""
        return column in self.needs or column in self.may_have or column in ("id", "system")


def extra_of(value: dict[str, Any], taken: Collection[str]) -> dict[str, Any]:
    """What no field of the record takes, kept beside it."""
    kept = {name: item for name, item in value.items() if name not in taken and name not in _COMMON}
    own = value.get("extra")
    if own is None:
        return kept
    return {**own, **kept} if isinstance(own, dict) else {**kept, "extra": own}


def shape_of(columns: Collection[str], kind: type[BaseModel]) -> Shape | None:
    """The shape that rows with these columns have when read as `kind`; None where no shape fits."""
    return next((shape for shape in SHAPES[kind] if all(name in columns for name in shape.needs)), None)


def convert(value: dict[str, Any], kind: type[R], shape: Shape | None = None) -> R:
    """The record in a row. `value` must be plain JSON; `shape` saves finding it again for rows of like columns.

    A row may hold more than was asked for: a preference is also a demonstration (its chosen answer) and a prompt.

    Raises:
        RowError: the row has no shape of this kind, or a value in it breaks a rule; names the field.
    """
    shape = shape or shape_of(value, kind)
    if shape is None:
        raise RowError("columns", "fit no known format")
    # Of a prompt every other column is kept, answers included: rewards may be verified by them.
    taken = frozenset({"prompt"}) if kind is Prompt else frozenset(shape.needs) | shape.may_have
    common = {"id": _row_id(value), "extra": extra_of(value, taken)}
    try:
        record = shape.build(value, common)
    except ValidationError as error:
        raise _row_error(error, shape) from None
    _require_bounded(record)
    return _as_kind(record, kind)


def without_unwritable(value: dict[str, Any], shape: Shape) -> tuple[dict[str, Any], list[str]]:
    """A row without the columns that JSON cannot write, and their names.

    Raises:
        RowError: the shape reads one of them. An id is left out, as it only names the row.
    """
    names = [name for name, item in value.items() if isinstance(item, Unwritable)]
    for name in names:
        if name != "id" and shape.reads(name):
            raise RowError(name, value[name].reason)
    return {name: item for name, item in value.items() if not isinstance(item, Unwritable)}, names


def _require_bounded(record: Record) -> None:
    """Raise RowError where a record's texts are longer than tokenizers can take in bounded memory."""
    match record:
        case Preference():
            said = [*(turn.content for turn in record.prompt), record.chosen, record.rejected]
        case Vote() | Completion():
            said = [*(turn.content for turn in record.prompt), record.completion]
        case Demonstration():
            said = [turn.content for turn in record.messages]
        case Prompt():
            said = [turn.content for turn in record.prompt]
    if sum(map(len, said)) > MAX_TEXT_CHARACTERS:
        raise RowError("line", f"holds more than {MAX_TEXT_CHARACTERS:,} characters of prompt and answers")


def _row_id(value: dict[str, Any]) -> str | None:
    """A row's id as text. It only names the row to people, so that no kind of id is refused."""
    found = value.get("id")
    if isinstance(found, float) and found.is_integer():
        found = int(found)  # pandas makes 7 a 7.0 where another row has no id
    return found if found is None or isinstance(found, str) else json.dumps(found, ensure_ascii=False)


def _row_error(error: ValidationError, shape: Shape) -> RowError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or shape.turns_column
    message = first["msg"].removeprefix("Value error, ")
    return RowError(field, message[:1].lower() + message[1:])


def _as_kind(record: Record, kind: type[R]) -> R:
    if type(record) is kind:
        return record
    if kind is Prompt:
        return cast(R, _as_prompt(record))
    if isinstance(record, Preference):
        if record.tie:
            raise RowError("preferred", "is a tie, so no answer is there to imitate")
        return cast(R, _demonstration(record, record.chosen))
    if isinstance(record, Vote):
        if not record.label:
            raise RowError("label", "is down, so the answer is not one to imitate")
        return cast(R, _demonstration(record, record.completion))
    raise TypeError(f"{type(record).__name__} cannot be read as {kind.__name__}")


def _demonstration(record: Prompt, answer: str) -> Demonstration:
    messages = (*record.prompt, Message(role="assistant", content=answer))
    return Demonstration(messages=messages, supervise_from=len(record.prompt), id=record.id, extra=record.extra)


def _as_prompt(record: Record) -> Prompt:
    turns = record.messages[:-1] if isinstance(record, Demonstration) else record.prompt
    return Prompt(prompt=turns, id=record.id, extra=record.extra)


def _conversation(turns: list[Turn], value: dict[str, Any]) -> Conversation:
    """The turns as messages, opened by the `system` column if the row has one."""
    system = value.get("system")
    if system is not None and not (isinstance(system, str) and not system.strip()):
        instruction = said_text(system, "system")
        if not turns or turns[0][0] != "system":
            turns = [("system", instruction), *turns]
        elif turns[0][1] != instruction:
            raise RowError("system", "differs from the system turn of the conversation")
    return tuple(Message(role=role, content=said) for role, said in turns)


# --- Preferences -------------------------------------------------------------------------------------------------


def _explicit_pair(value: dict[str, Any], common: dict[str, Any]) -> Preference:
    return _preference(prompted_pair(value["prompt"], value["chosen"], value["rejected"]), value, common)


def _implicit_pair(value: dict[str, Any], common: dict[str, Any]) -> Preference:
    return _preference(split_pair(value["chosen"], value["rejected"]), value, common)


def _a_or_b(value: dict[str, Any], common: dict[str, Any]) -> Preference:
    preferred = preferred_answer(value["preferred"])
    in_transcript = is_transcript(value["prompt"])
    turns = prompt_turns(value["prompt"], "prompt")
    first = lone_answer(value["response_1"], "response_1", in_transcript)
    second = lone_answer(value["response_2"], "response_2", in_transcript)
    pair = (turns, second, first) if preferred == 2 else (turns, first, second)
    return _preference(pair, {**value, "tie": preferred == 0}, common)


def _preference(pair: tuple[list[Turn], str, str], value: dict[str, Any], common: dict[str, Any]) -> Preference:
    turns, chosen, rejected = pair
    if chosen == rejected:
        raise RowError("rejected", "is the same text as chosen")
    tie = value.get("tie")
    if not (tie is None or isinstance(tie, bool)):
        raise RowError("tie", f"is {kind_of(tie)}, not true or false")
    return Preference(
        prompt=_conversation(turns, value),
        chosen=chosen,
        rejected=rejected,
        margin=margin_of(value),
        score_difference=score_difference(value),
        tie=bool(tie),
        **common,
    )


# --- Votes, demonstrations, prompts ------------------------------------------------------------------------------


def _vote(value: dict[str, Any], common: dict[str, Any]) -> Vote:
    return Vote(
        prompt=_conversation(prompt_turns(value["prompt"], "prompt"), value),
        completion=lone_answer(value["completion"], "completion", is_transcript(value["prompt"])),
        label=vote_label(value["label"]),
        **common,
    )


def _messages(value: dict[str, Any], common: dict[str, Any]) -> Demonstration:
    first = value.get("supervise_from")
    if first is not None and (isinstance(first, bool) or not isinstance(first, int)):
        raise RowError("supervise_from", f"is {kind_of(first)}, not a whole number")
    turns = chat_turns(value["messages"], "messages")
    return Demonstration(messages=_conversation(turns, value), supervise_from=first or 0, **common)


def _conversations(value: dict[str, Any], common: dict[str, Any]) -> Demonstration:
    turns = chat_turns(value["conversations"], "conversations")
    return Demonstration(messages=_conversation(turns, value), **common)


def _completed_prompt(value: dict[str, Any], common: dict[str, Any]) -> Demonstration:
    prompt = _conversation(prompt_turns(value["prompt"], "prompt"), value)
    if isinstance(value["completion"], list):
        said = chat_turns(value["completion"], "completion")
    else:
        said = [("assistant", lone_answer(value["completion"], "completion", is_transcript(value["prompt"])))]
    answer = tuple(Message(role=role, content=text) for role, text in said)
    return Demonstration(messages=prompt + answer, supervise_from=len(prompt), **common)


def _alpaca(value: dict[str, Any], common: dict[str, Any]) -> Demonstration:
    question = said_text(value["instruction"], "instruction")
    context = value.get("input")
    if context is not None and context != "":
        question = f"{question}\n\n{said_text(context, 'input')}"
    prompt = _conversation([("user", question)], value)
    answer = Message(role="assistant", content=said_text(value["output"], "output"))
    return Demonstration(messages=(*prompt, answer), supervise_from=len(prompt), **common)


def _prompt(value: dict[str, Any], common: dict[str, Any]) -> Prompt:
    return Prompt(prompt=_conversation(prompt_turns(value["prompt"], "prompt"), value), **common)


def _asked(column: str) -> Callable[[dict[str, Any], dict[str, Any]], Prompt]:
    """A conversation as a prompt: without its last answer, if it ends with one."""

    def build(value: dict[str, Any], common: dict[str, Any]) -> Prompt:
        turns = chat_turns(value[column], column)
        if len(turns) > 1 and turns[-1][0] == "assistant":
            turns = turns[:-1]
        return Prompt(prompt=_conversation(turns, value), **common)

    return build


def _answered(column: str) -> Callable[[dict[str, Any], dict[str, Any]], Completion]:
    """A prompt and one answer, which may say nothing."""

    def build(value: dict[str, Any], common: dict[str, Any]) -> Completion:
        answer = value[column]
        empty = isinstance(answer, str) and not answer.strip()
        return Completion(
            prompt=_conversation(prompt_turns(value["prompt"], "prompt"), value),
            completion=answer if empty else lone_answer(answer, column, is_transcript(value["prompt"])),
            **common,
        )

    return build


def _last_answer(column: str) -> Callable[[dict[str, Any], dict[str, Any]], Completion]:
    """A conversation whose last turn, the assistant's, is the answer."""

    def build(value: dict[str, Any], common: dict[str, Any]) -> Completion:
        *turns, (role, said) = chat_turns(value[column], column)
        if role != "assistant" or not turns:
            raise RowError(column, "does not end with an answer to something")
        return Completion(prompt=_conversation(turns, value), completion=said, **common)

    return build


_PAIRS = (
    Shape("explicit pair", ("prompt", "chosen", "rejected"), _SCORES | {"tie"}, _explicit_pair, "prompt"),
    Shape("A/B", ("prompt", "response_1", "response_2", "preferred"), frozenset({"margin"}), _a_or_b, "prompt"),
    Shape("implicit pair", ("chosen", "rejected"), _SCORES | {"tie"}, _implicit_pair, "chosen"),
)
_VOTE = Shape("vote", ("prompt", "completion", "label"), frozenset(), _vote, "prompt")
_COMPLETION = Shape("prompt and answer", ("prompt", "completion"), frozenset(), _completed_prompt, "prompt")
_ALPACA = Shape("Alpaca", ("instruction", "output"), frozenset({"input"}), _alpaca, "instruction")
_SUPERVISED = frozenset({"supervise_from"})

SHAPES: dict[type[BaseModel], tuple[Shape, ...]] = {
    Preference: _PAIRS,
    Vote: (_VOTE,),
    # A file with labels or with pairs is read through them: an answer people turned down is never imitated.
    Demonstration: (
        Shape("chat", ("messages",), _SUPERVISED, _messages, "messages"),
        Shape("ShareGPT", ("conversations",), frozenset(), _conversations, "conversations"),
        _VOTE,
        _COMPLETION,
        _ALPACA,
        *_PAIRS,
    ),
    Completion: (
        Shape("prompt and answer", ("prompt", "completion"), frozenset(), _answered("completion"), "prompt"),
        Shape("prompt and response", ("prompt", "response"), frozenset(), _answered("response"), "prompt"),
        Shape("chat", ("messages",), _SUPERVISED, _last_answer("messages"), "messages"),
        Shape("ShareGPT", ("conversations",), frozenset(), _last_answer("conversations"), "conversations"),
    ),
    Prompt: (
        *_PAIRS,
        _VOTE,
        _COMPLETION,
        Shape("chat", ("messages",), _SUPERVISED, _asked("messages"), "messages"),
        Shape("ShareGPT", ("conversations",), frozenset(), _asked("conversations"), "conversations"),
        _ALPACA,
        Shape("prompt", ("prompt",), frozenset(), _prompt, "prompt"),
    ),
}
"""The shapes each kind of record can be read from; the first whose columns are all there is taken."""
