"""Turns for a chat template, with placeholders for all text that must not become a control token.

Content that the template does not write is refused here, by field: otherwise the row would lose it silently.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefine.data.reading.rows import has_lone_surrogate, kind_of
from prefine.data.tokens.placeholders import Placeholders
from prefine.data.tokens.probing import REMEDY, TemplateTraits
from prefine.errors import RefusedRowError
from prefine.json_reading import JsonError, parse_json
from prefine.records import Conversation, Message, function_of

_TOOL_REMEDY = "Use a model whose chat template writes tools, or set model.chat_template to a Jinja file that does."


@dataclass(frozen=True)
class Shielded:
    """A conversation and tool definitions for the template, and their placeholders."""

    turns: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    stand_ins: Placeholders


class Shield:
    """Turns records into a template's input.

    Args:
        traits: what the template writes.
        anywhere: a pattern for texts that must not become a control token anywhere.
        in_answers: the same for an assistant's text, in which <think> or tool tags are legitimate.
    """

    def __init__(self, traits: TemplateTraits, anywhere: re.Pattern[str], in_answers: re.Pattern[str]) -> None:
        self._traits = traits
        self._anywhere = anywhere
        self._in_answers = in_answers

    def conversation(self, messages: Conversation, tools: Sequence[dict[str, Any]], column: str) -> Shielded:
        """Turns and tools, shielded.

        Args:
            column: of the turns, for errors.

        Raises:
            RefusedRowError: they have content that the template does not write.
        """
        if tools and not self._traits.tools:
            raise RefusedRowError("tools", "are given, and the chat template writes no tool definitions", _TOOL_REMEDY)
        stand_ins = Placeholders()
        turns = [self._turn(turn, f"{column}[{place}]", stand_ins) for place, turn in enumerate(messages)]
        return Shielded(turns, [self._hidden(_wrapped(tool), stand_ins) for tool in tools], stand_ins)

    def answer(self, text: str, stand_ins: Placeholders) -> dict[str, Any]:
        """An assistant turn with this text, which may be blank."""
        return {"role": "assistant", "content": stand_ins.hide(self._in_answers, text)}

    def _turn(self, message: Message, field: str, stand_ins: Placeholders) -> dict[str, Any]:
        match message.role:
            case "system" if self._traits.system_refusal is not None:
                raise RefusedRowError(field, self._traits.system_refusal, REMEDY)
            case "assistant":
                return self._assistant_turn(message, field, stand_ins)
            case "tool":
                if not self._traits.tool_turns:
                    raise RefusedRowError(field, "is a tool turn, and the chat template writes none", _TOOL_REMEDY)
        given = {"name": message.name, "tool_call_id": message.tool_call_id}
        rest = {key: self._hidden(value, stand_ins) for key, value in given.items() if value is not None}
        return {"role": message.role, "content": stand_ins.hide(self._anywhere, message.content), **rest}

    def _assistant_turn(self, message: Message, field: str, stand_ins: Placeholders) -> dict[str, Any]:
        turn = self.answer(message.content, stand_ins)
        if message.reasoning is not None:
            if self._traits.reasoning_key is None:
                raise RefusedRowError(
                    f"{field}.reasoning",
                    "is given, and the chat template writes no reasoning",
                    "Leave the reasoning out of the data, or use a model whose chat template writes it.",
                )
            turn[self._traits.reasoning_key] = stand_ins.hide(self._anywhere, message.reasoning)
        if message.tool_calls:
            turn |= self._calls(message, field, stand_ins)
        return turn

    def _calls(self, message: Message, field: str, stand_ins: Placeholders) -> dict[str, Any]:
        style, said = self._traits.calls, bool(message.content.strip())
        if style is None:
            raise RefusedRowError(f"{field}.tool_calls", "are given, and the chat template writes none", _TOOL_REMEDY)
        if len(message.tool_calls) > 1 and not style.several:
            raise RefusedRowError(
                f"{field}.tool_calls", "are several, and the chat template writes one per turn", _TOOL_REMEDY
            )
        if said and not style.beside_text:
            raise RefusedRowError(
                f"{field}.content", "is text beside tool calls, which the chat template leaves out", _TOOL_REMEDY
            )
        calls = [
            self._hidden(_as_called(call, style.arguments_as_text, f"{field}.tool_calls[{place}]"), stand_ins)
            for place, call in enumerate(message.tool_calls)
        ]
        return {"tool_calls": calls} if said else {"tool_calls": calls, "content": style.blank}

    def _hidden(self, value: Any, stand_ins: Placeholders) -> Any:
        """A JSON value with all texts shielded, keys included."""
        if isinstance(value, str):
            return stand_ins.hide(self._anywhere, value)
        if isinstance(value, dict):
            return {self._hidden(key, stand_ins): self._hidden(item, stand_ins) for key, item in value.items()}
        return [self._hidden(item, stand_ins) for item in value] if isinstance(value, list | tuple) else value


def _wrapped(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool definition in OpenAI's form; some data lack its wrapper."""
    return tool if "function" in tool or "name" not in tool else {"type": "function", "function": tool}


def _as_called(call: dict[str, Any], as_text: bool, field: str) -> dict[str, Any]:
    """A call in OpenAI's form, with arguments as the template expects them."""
    function = function_of(call)
    arguments = function.get("arguments", {})
    if as_text:
        arguments = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    elif isinstance(arguments, str):
        arguments = _parsed(arguments, f"{field}.arguments")
    rest = {key: value for key, value in call.items() if key not in ("function", "name", "arguments")}
    return {"type": "function", **rest, "function": {**function, "arguments": arguments}}


def _parsed(arguments: str, field: str) -> dict[str, Any]:
    """The object in a call's arguments, which are JSON text."""
    try:
        found = parse_json(arguments) if arguments.strip() else {}
    except JsonError as error:
        raise RefusedRowError(field, str(error), "Correct the row.") from None
    if not isinstance(found, dict):
        raise RefusedRowError(field, f"is {kind_of(found)} and not an object", "Correct the row.")
    if has_lone_surrogate(found):
        raise RefusedRowError(field, "has a lone surrogate (half of a character)", "Correct the row.")
    return found
