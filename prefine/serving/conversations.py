"""Messages of requests to conversations, read as rows of data are: one reading for training and use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from pydantic import ValidationError

from prefine.data.reading.rows import RowError
from prefine.data.records.tool_calls import tools_of
from prefine.data.records.turns import chat_turns, row_error
from prefine.records import Message, Prompt
from prefine.serving.prompter import Prompter
from prefine.web.errors import ApiError

# Turns of these roles that follow each other are one turn: clients send them so, and chat templates do not.
_JOINED = ("system", "user")


class Conversation:
    """A conversation that waits for an answer; a long one takes a while to read, which is the prompter's thread's work.

    Args:
        messages, tools, tool_choice: see `prompt_of`.
    """

    def __init__(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = (), tool_choice: Any = "auto"
    ) -> None:
        self._parts = messages, tools, tool_choice
        self._prompt: Prompt | None = None

    @property
    def prompt(self) -> Prompt:
        """What was read.

        Raises:
            ApiError: see `prompt_of`.
        """
        if self._prompt is None:
            self._prompt = prompt_of(*self._parts)
        return self._prompt

    def ids(self, prompter: Prompter) -> list[int]:
        """Ids up to where the answer begins.

        Raises:
            ApiError: see `prompt_of`.
            TemplateError: the chat template refuses the conversation.
        """
        return prompter.conversation_ids(self.prompt)


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
    for role, run in groupby(turns, key=lambda turn: turn.role):
        same = list(run)
        if role in _JOINED and len(same) > 1:
            same = [Message(role=role, content="\n\n".join(turn.content for turn in same))]
        joined += same
    return joined
