"""The records prefine works on. No torch here: reading and checking data must be cheap.

Each row of a file of any format (see docs/data.md) becomes one of these or is quarantined. Texts are unchanged: nothing
is stripped, lower-cased or normalised.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

Role = Literal["system", "user", "assistant", "tool"]
V = TypeVar("V")


def _encodable(text: str) -> str:
    """Refuse lone surrogates, which cannot be written as UTF-8 or tokenized."""
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("has a lone surrogate (half of a character)") from None
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank")
    return text


Text = Annotated[str, AfterValidator(_encodable)]
SaidText = Annotated[Text, AfterValidator(_not_blank)]


def _writable_json(items: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    """Refuse values that JSON cannot represent: other types, non-finite numbers, lone surrogates."""
    waiting: list[Any] = list(items)
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            _encodable(each)
        elif isinstance(each, dict):
            if not all(isinstance(key, str) for key in each):
                raise ValueError("has a key that is not text")
            waiting += [*each, *each.values()]
        elif isinstance(each, list | tuple):
            waiting += each
        elif isinstance(each, float) and not math.isfinite(each):
            raise ValueError(f"holds the number {each}, which JSON cannot represent")
        elif not (each is None or isinstance(each, bool | int | float)):
            raise ValueError(f"holds a value of type {type(each).__name__}, which JSON cannot represent")
    return items


# Lists are taken as tuples, which is how JSON files give them.
JsonObjects = Annotated[tuple[dict[str, Any], ...], Field(strict=False), AfterValidator(_writable_json)]


def _is_empty(value: object) -> bool:
    """Whether a field is empty and left out of a written record, as before there was such a field."""
    return value is None or value == ()


class _Record(BaseModel):
    # strict: "1" is not 1 and 1 is not True; a record is a fact, so frozen.
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


def function_of(call: dict[str, Any]) -> dict[str, Any]:
    """The name and arguments of a tool call, which some data have in the call, not in its `function`."""
    function = call.get("function", call)
    return function if isinstance(function, dict) else {}


class Message(_Record):
    """One turn of a conversation.

    Attributes:
        tool_calls: an assistant's calls, as in OpenAI's API: `{"id", "type", "function": {"name", "arguments"}}`, or
            the function's fields without the rest. Arguments are an object or its JSON text.
        content: the text; may be blank in a turn with tool calls.
        reasoning: of an assistant before its answer (`reasoning_content`, `thinking`).
        name, tool_call_id: of a tool turn: the tool, and its call.
        supervised: whether an assistant turn is learned; if not, it is context.
    """

    role: Role
    tool_calls: JsonObjects = Field(default=(), exclude_if=_is_empty)  # before content, whose validator reads it
    content: Text
    reasoning: SaidText | None = Field(default=None, exclude_if=_is_empty)
    name: SaidText | None = Field(default=None, exclude_if=_is_empty)
    tool_call_id: SaidText | None = Field(default=None, exclude_if=_is_empty)
    supervised: bool = Field(default=True, exclude_if=lambda value: value is True)

    @field_validator("tool_calls", mode="after")
    @classmethod
    def _calls(cls, calls: tuple[dict[str, Any], ...], info: ValidationInfo) -> tuple[dict[str, Any], ...]:
        for call in calls:
            function = function_of(call)
            if not isinstance(function.get("name"), str) or not function["name"].strip():
                raise ValueError("has a call without the name of a function")
            if not isinstance(function.get("arguments", {}), dict | str):
                raise ValueError(f"has a call of {function['name']!r} whose arguments are neither an object nor text")
        return _only_of("assistant", calls, info)

    @field_validator("content", mode="after")
    @classmethod
    def _content(cls, content: str, info: ValidationInfo) -> str:
        # Refused tool calls are missing here; their own error is enough.
        return _not_blank(content) if info.data.get("tool_calls") == () else content

    @field_validator("reasoning", mode="after")
    @classmethod
    def _of_an_assistant(cls, value: str | None, info: ValidationInfo) -> str | None:
        return _only_of("assistant", value, info)

    @field_validator("name", "tool_call_id", mode="after")
    @classmethod
    def _of_a_tool(cls, value: str | None, info: ValidationInfo) -> str | None:
        return _only_of("tool", value, info)


def _only_of(role: Role, value: V, info: ValidationInfo) -> V:
    given = info.data.get("role")
    if not _is_empty(value) and given is not None and given != role:
        raise ValueError(f"is only for {role} turns; this turn's role is {given!r}")
    return value


Conversation = tuple[Message, ...]

# Roles that may follow each role. A tool turn answers a call.
_NEXT: dict[Role, tuple[Role, ...]] = {
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "tool": ("assistant", "tool"),
}


def check_turn_order(messages: Conversation, *, last: Role) -> None:
    """Raise ValueError unless turns run [system] user (assistant [tool ... assistant]) user ... and end with `last`.

    Tool turns follow an assistant turn with tool calls. With `last` "user", the last turn may also be a tool turn,
    after which the assistant continues.
    """
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if not turns:
        raise ValueError("has no user turn")
    due: tuple[Role, ...] = ("user",)
    for number, turn in enumerate(turns, start=1):
        if turn.role == "tool" and due == ("user",) and number > 1:
            raise ValueError(f"turn {number} is 'tool', but the assistant turn before it has no tool_calls")
        if turn.role not in due:
            expected = " or ".join(map(repr, due))
            raise ValueError(f"turn {number} is {turn.role!r} where {expected} is expected")
        due = (*_NEXT[turn.role], "tool") if turn.tool_calls else _NEXT[turn.role]
    if turns[-1].role != last and not (last == "user" and turns[-1].role == "tool"):
        raise ValueError(f"ends with {turns[-1].role!r}; the last turn must be {last!r}")


class Prompt(_Record):
    """A conversation without the assistant's next answer; ends with a user turn or a tool's result.

    `tools` are definitions of tools for the assistant, for the template.
    """

    prompt: Conversation
    tools: JsonObjects = Field(default=(), exclude_if=_is_empty)
    id: str | None = None
    extra: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _turns(self) -> Prompt:
        check_turn_order(self.prompt, last="user")
        return self


class Preference(Prompt):
    """Two answers to one prompt, of which people preferred the first.

    `tie` marks an undecided pair. `margin` is the data's measure of how much better the chosen answer is;
    `score_difference` is the chosen minus the rejected answer's score, in the data's unit.
    """

    chosen: SaidText
    rejected: SaidText
    margin: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    score_difference: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    tie: bool = False

    @model_validator(mode="after")
    def _differ(self) -> Preference:
        if self.chosen == self.rejected:
            raise ValueError("chosen and rejected are the same text")
        return self


class Vote(Prompt):
    """One answer with a thumb up (True) or down (False)."""

    completion: SaidText
    label: bool


class Completion(Prompt):
    """One answer to be scored. It may be empty, as models generate empty answers, too."""

    completion: Text


class Demonstration(_Record):
    """A conversation to imitate.

    Assistant turns at or after `supervise_from` (an index into messages) are learned, except those with `supervised`
    false; there is at least one. `tools` are as in Prompt.
    """

    messages: Conversation
    supervise_from: int = Field(default=0, ge=0)
    tools: JsonObjects = Field(default=(), exclude_if=_is_empty)
    id: str | None = None
    extra: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _turns(self) -> Demonstration:
        check_turn_order(self.messages, last="assistant")
        if self.supervise_from >= len(self.messages):
            raise ValueError("supervise_from is after the last turn")
        if not self.learned_turns:
            raise ValueError("no assistant turn is supervised, so there is nothing to learn")
        return self

    @property
    def learned_turns(self) -> tuple[int, ...]:
        """Indices into messages of learned assistant turns."""
        return tuple(
            index
            for index, turn in enumerate(self.messages)
            if turn.role == "assistant" and turn.supervised and index >= self.supervise_from
        )


Record = Preference | Vote | Completion | Demonstration | Prompt
