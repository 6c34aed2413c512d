"""The records prefine works on. No torch here: reading and checking data must be cheap.

Whatever shape a file has (see docs/data.md), each of its rows becomes one of these or goes to quarantine.
Texts are kept as they were written: nothing is stripped, lower-cased or normalised.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Role = Literal["system", "user", "assistant"]


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


class _Record(BaseModel):
    # strict: "1" is not 1 and 1 is not True; a record is a fact, so frozen.
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class Message(_Record):
    """One turn of a conversation."""

    role: Role
    content: SaidText


Conversation = tuple[Message, ...]


def check_turn_order(messages: Conversation, *, last: Role) -> None:
    """Raise ValueError unless turns run [system] user assistant user ... and end with `last`."""
    turns = [m.role for m in messages]
    if turns and turns[0] == "system":
        turns = turns[1:]
    if not turns:
        raise ValueError("has no user turn")
    for number, role in enumerate(turns):
        expected = "user" if number % 2 == 0 else "assistant"
        if role != expected:
            raise ValueError(f"turn {number + 1} is {role!r} where {expected!r} is due")
    if turns[-1] != last:
        raise ValueError(f"ends with {turns[-1]!r}; the last turn must be {last!r}")


class Prompt(_Record):
    """A conversation that waits for the assistant's answer; ends with a user turn."""

    prompt: Conversation
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

    Assistant turns at or after `supervise_from` (an index into messages) are learned; the last turn always is.
    """

    messages: Conversation
    supervise_from: int = Field(default=0, ge=0)
    id: str | None = None
    extra: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _turns(self) -> Demonstration:
        check_turn_order(self.messages, last="assistant")
        if self.supervise_from >= len(self.messages):
            raise ValueError("supervise_from lies behind the last turn")
        return self


Record = Preference | Vote | Completion | Demonstration | Prompt
