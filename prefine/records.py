"""The records prefine works on. No torch here: reading and checking data must be cheap.

Whatever shape a file has (see docs/data.md), each of its rows becomes one of these or goes to quarantine.
Texts are kept as they were written: nothing is stripped, lower-cased or normalised.
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
    """Refuse lone surrogates: they cannot be written to any UTF-8 file or tokenized."""
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
    """Refuse what a JSON file cannot hold: other types, numbers that are not finite, lone surrogates."""
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
            raise ValueError(f"holds the number {each}, which JSON cannot write")
        elif not (each is None or isinstance(each, bool | int | float)):
            raise ValueError(f"holds a value of type {type(each).__name__}, which JSON cannot write")
    return items


# Lists are taken as tuples, which is how JSON files give them.
JsonObjects = Annotated[tuple[dict[str, Any], ...], Field(strict=False), AfterValidator(_writable_json)]


def _is_empty(value: object) -> bool:
    """Whether a field says nothing and is left out where a record is written, as before there was such a field."""
    return value is None or value == ()


class _Record(BaseModel):
    # strict: "1" is not 1 and 1 is not True; a record is a fact, so frozen.
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


def function_of(call: dict[str, Any]) -> dict[str, Any]:
    """The name and arguments of a tool call, which some data have in the call itself, not in its `function`."""
    function = call.get("function", call)
    return function if isinstance(function, dict) else {}


class Message(_Record):
    """One turn of a conversation.

    Attributes:
        tool_calls: an assistant's calls, as in OpenAI's API: `{"id", "type", "function": {"name", "arguments"}}`, or
            the function's fields without the rest. Arguments are an object or its JSON text.
        content: its text; may be blank in a turn with tool calls only.
        reasoning: what an assistant thought before it answered (`reasoning_content`, `thinking`).
        name, tool_call_id: of a tool turn: the tool, and the call that it answers.
        supervised: whether an assistant turn is to be learned; if not, it is context.
    """

    role: Role
    tool_calls: JsonObjects = Field(default=(), exclude_if=_is_empty)  # before content, whose check reads it
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
        # Tool calls that are refused are missing here; their own reason is enough.
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

# What may follow each role. A tool turn answers a call.
_NEXT: dict[Role, tuple[Role, ...]] = {
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "tool": ("assistant", "tool"),
}


def check_turn_order(messages: Conversation, *, last: Role) -> None:
    """Raise ValueError unless turns run [system] user (assistant [tool ... assistant]) user ... and end with `last`.

    Tool turns follow an assistant turn with tool calls. Where `last` is "user", a tool turn may be the last, too: then
    the assistant is to go on after a tool's result.
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
            raise ValueError(f"turn {number} is {turn.role!r} where {expected} is due")
        due = (*_NEXT[turn.role], "tool") if turn.tool_calls else _NEXT[turn.role]
    if turns[-1].role != last and not (last == "user" and turns[-1].role == "tool"):
        raise ValueError(f"ends with {turns[-1].role!r}; the last turn must be {last!r}")


class Prompt(_Record):
    """A conversation that waits for the assistant's answer; ends with a user turn or with a tool's result.

    `tools` are the definitions of the tools that the assistant may call, for the template to write.
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

    `tie` marks a pair nobody could decide. `margin` is the data's own word on how much better the chosen answer is;
    `score_difference` is by how much its score exceeds the rejected answer's, in whatever unit the data's scores have.
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
    """One answer without a verdict, to be scored. It may be empty: models write that, too."""

    completion: Text


class Demonstration(_Record):
    """A conversation to imitate.

    Assistant turns at or after `supervise_from` (an index into messages) are learned, but those whose `supervised` is
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
        """Indices into messages of the assistant turns that are learned."""
        return tuple(
            index
            for index, turn in enumerate(self.messages)
            if turn.role == "assistant" and turn.supervised and index >= self.supervise_from
        )


Record = Preference | Vote | Completion | Demonstration | Prompt
