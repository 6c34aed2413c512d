"""Messages of requests to conversations, read as rows of data are: one reading for training and use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from prefine.data.reading.rows import RowError
from prefine.data.records.tool_calls import tools_of
from prefine.data.records.turns import chat_turns, row_error
from prefine.records import Message, Prompt
from prefine.web.errors import ApiError

# Turns of these roles that follow each other are one turn: clients send them so, and chat templates do not.
_JOINED = ("system", "user")


def prompt_of(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], tool_choice: Any = "auto"
) -> Prompt:
    """The conversation that waits for an answer.

    Args:
        messages: as in OpenAI's API; system or user turns in a row are joined by a blank line.
        tools: definitions.
        tool_choice: none leaves the tools out.

    Raises:
        ApiError: a turn that cannot be read or has something else than text; turns in another order than
            [system] user (assistant [tool ... assistant]) user ...; a tool choice that would force a call.
    """
    if tool_choice not in ("auto", "none"):
        raise ApiError(
            400,
            "tool_choice: a call cannot be forced, as models here write calls as text; send auto or none",
            param="tool_choice",
            code="unsupported_parameter",
        )
    try:
        turns = _joined(chat_turns(list(messages), "messages"))
        offered = tools_of({"tools": list(tools)}) if tool_choice != "none" else ()
        return Prompt(prompt=tuple(turns), tools=offered)
    except RowError as error:
        raise _refused(error) from None
    except ValidationError as error:
        raise _refused(row_error(error, names={"prompt": "messages"})) from None


def _refused(error: RowError) -> ApiError:
    """400 that names the field; what is wrong with the turns as a whole is about the messages."""
    field = error.problem.field or "messages"
    return ApiError(400, f"{field}: {error.problem.reason}", param=field, code="invalid_value")


def _joined(turns: Sequence[Message]) -> list[Message]:
    joined: list[Message] = []
    for turn in turns:
        if joined and turn.role in _JOINED and joined[-1].role == turn.role:
            joined[-1] = Message(role=turn.role, content=f"{joined[-1].content}\n\n{turn.content}")
        else:
            joined.append(turn)
    return joined
