"""Finds out what a chat template writes by rendering placeholders, as its source can have any form.

A placeholder is a text that no template writes by itself. If it is not in the rendering, the template drops that part.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from prefine.data.tokens.placeholders import FIRST_PLACEHOLDER
from prefine.data.tokens.rendering import Renderer
from prefine.errors import TemplateError

REMEDY = "Set model.chat_template to 'plain' (User: ... Assistant: ...) or to a Jinja file."

# Content of user, assistant and system turns.
_ASKED, _SAID, _INSTRUCTED = (chr(FIRST_PLACEHOLDER + place) for place in range(3))
# These pass through JSON, which may escape other characters.
_THOUGHT, _TOOL, _KEY, _VALUE, _OTHER_VALUE, _RESULT = (
    f"qz{name}zq" for name in ("thought", "tool", "key", "value", "other", "result")
)
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": _TOOL,
            "description": "A tool.",
            "parameters": {"type": "object", "properties": {_KEY: {"type": "string"}}, "required": [_KEY]},
        },
    }
]
_CALL_ID = "abcdefgh1"  # some templates require nine letters and digits
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_TAG = re.compile(r"<[^<>\s]*>")


@dataclass(frozen=True)
class CallStyle:
    """The form of an assistant's tool calls for a template.

    Attributes:
        blank: the content of a turn with calls only: "" or None.
        arguments_as_text: whether arguments are JSON text, not an object.
        several: whether it writes several calls of a turn.
        beside_text: whether it writes the turn's text besides its calls.
    """

    blank: str | None
    arguments_as_text: bool
    several: bool
    beside_text: bool


@dataclass(frozen=True)
class TemplateTraits:
    """What a chat template writes.

    Attributes:
        closing: what it writes after an assistant's text.
        prefill: text that it adds when it opens an answer, but not to a given answer (`<think>`).
        system_refusal: why it writes no system turn; None if it does.
        markers: control tokens around turns, without those in an assistant's text.
        reasoning_key: key of a message with its reasoning; None if it writes none.
        tools: whether it writes tool definitions.
        calls: form of tool calls; None if it writes none.
        tool_turns: whether it writes tool results.
    """

    closing: str
    prefill: str
    system_refusal: str | None
    markers: frozenset[str]
    reasoning_key: str | None
    tools: bool
    calls: CallStyle | None
    tool_turns: bool


class TemplateProbe:
    """Tests a template.

    Args:
        renderer: of the template.
        control: texts of the tokenizer's control tokens.
    """

    def __init__(self, renderer: Renderer, control: Collection[str]) -> None:
        self._renderer = renderer
        self._control = control

    def traits(self) -> TemplateTraits:
        """All traits of the template.

        Raises:
            TemplateError: it drops users' or assistants' text, or opens answers in another way than it writes them.
        """
        closing, prefill = self._answer()
        tools = _TOOL in self._tried([_user()], tools=_TOOLS, opened=True)
        definitions = _TOOLS if tools else []
        calls = self._call_style(definitions)
        result, tool_turns = self._tool_turn(calls, definitions)
        return TemplateTraits(
            closing=closing,
            prefill=prefill,
            system_refusal=self._system_refusal(),
            markers=frozenset(text for text in self._control if text in self._around_turns() + result),
            reasoning_key=self._reasoning_key(),
            tools=tools,
            calls=calls,
            tool_turns=tool_turns,
        )

    def _answer(self) -> tuple[str, str]:
        """The closing of an answer, and its prefill."""
        opened = self._renderer.render([_user()], opened=True)
        whole = self._renderer.render([_user(), _assistant()], opened=False)
        for role, said, text in (("user", _ASKED, opened), ("assistant", _SAID, whole)):
            if said not in text:
                raise TemplateError(
                    f"the template leaves out what the {role} says", REMEDY, field="model.chat_template"
                )
        prefill = ""
        if not whole.startswith(opened):
            shared = opened[: self._shared_length(opened, whole)]
            asked = self._tried([_user()], opened=False)
            # Without a header in the conversation, an answer would be learned where none is expected.
            if not asked or not shared.startswith(asked) or shared == asked:
                raise does_not_continue()
            prefill = opened[len(shared) :]
        return whole.rpartition(_SAID)[2], prefill

    def _shared_length(self, opened: str, whole: str) -> int:
        """Length of the common beginning, without splitting a control token or a tag."""
        length = _shared(opened, whole)
        patterns = [_TAG, *(re.compile(re.escape(text)) for text in self._control)]
        cut = [m.start() for p in patterns for m in p.finditer(opened) if m.start() < length < m.end()]
        return min([length, *cut])

    def _system_refusal(self) -> str | None:
        try:
            written = self._renderer.render(_WITH_SYSTEM, opened=True)
        except TemplateError as error:
            return f"is a system turn, which the template refuses: {error.problem}"
        return None if _INSTRUCTED in written else "is a system turn, and the template leaves out system turns"

    def _around_turns(self) -> str:
        """The text around turns, without the assistant's text."""
        conversations = (_WITH_SYSTEM, _TURN_BY_TURN[:1], _TURN_BY_TURN)
        return "".join(self._tried(each, opened=True).rpartition(_SAID)[2] for each in conversations)

    def _reasoning_key(self) -> str | None:
        said = ((key, [_user(), {**_assistant(), key: _THOUGHT}]) for key in _REASONING_KEYS)
        return next((key for key, messages in said if _THOUGHT in self._tried(messages, opened=False)), None)

    def _call_style(self, tools: Sequence[dict[str, Any]]) -> CallStyle | None:
        """The first form of calls that is rendered as JSON or in the template's own form, else any that is rendered."""
        written: list[tuple[str | None, bool]] = []
        for as_text in (False, True):
            for blank in ("", None):
                text = self._tried([_user(), _calling(blank, _call(_VALUE, as_text))], opened=False, tools=tools)
                if _KEY not in text or _VALUE not in text:
                    continue
                # No model was trained on Python's form of an object, or on doubly encoded JSON.
                if f"'{_KEY}'" not in text and f'\\"{_KEY}' not in text:
                    return self._described(blank, as_text, tools)
                written.append((blank, as_text))
        return self._described(*written[0], tools) if written else None

    def _described(self, blank: str | None, as_text: bool, tools: Sequence[dict[str, Any]]) -> CallStyle:
        two = [_call(_VALUE, as_text), _call(_OTHER_VALUE, as_text)]
        both = self._tried([_user(), _calling(blank, *two)], opened=False, tools=tools)
        beside = self._tried([_user(), _calling(_SAID, two[0])], opened=False, tools=tools)
        return CallStyle(
            blank,
            as_text,
            several=_VALUE in both and _OTHER_VALUE in both,
            beside_text=_VALUE in beside and _SAID in beside,
        )

    def _tool_turn(self, calls: CallStyle | None, tools: Sequence[dict[str, Any]]) -> tuple[str, bool]:
        """The text around a tool's result, and whether the result is written."""
        if calls is None:
            return "", False
        called = [_user(), _calling(calls.blank, _call(_VALUE, calls.arguments_as_text))]
        answer = {"role": "tool", "content": _RESULT, "name": _TOOL, "tool_call_id": _CALL_ID}
        text = self._tried([*called, answer], opened=True, tools=tools)
        before = self._tried(called, opened=False, tools=tools)
        return text[_shared(before, text) :], _RESULT in text

    def _tried(self, messages: Sequence[dict[str, Any]], *, opened: bool, tools: Sequence[dict[str, Any]] = ()) -> str:
        """The rendering; empty if the template refuses it."""
        try:
            return self._renderer.render(messages, opened=opened, tools=tools)
        except TemplateError:
            return ""


def does_not_continue() -> TemplateError:
    """The error for a template that opens answers in another way than it writes them."""
    return TemplateError(
        "the text of a conversation does not start with the text of its prompt",
        "Use a template whose add_generation_prompt writes exactly what precedes an assistant turn.",
        field="model.chat_template",
    )


def _shared(one: str, other: str) -> int:
    """Length of the common beginning of two texts."""
    differ = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differ, min(len(one), len(other)))


def _user() -> dict[str, Any]:
    return {"role": "user", "content": _ASKED}


def _assistant() -> dict[str, Any]:
    return {"role": "assistant", "content": _SAID}


def _calling(content: str | None, *calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def _call(value: str, as_text: bool) -> dict[str, Any]:
    arguments: Any = f'{{"{_KEY}": "{value}"}}' if as_text else {_KEY: value}
    return {"id": _CALL_ID, "type": "function", "function": {"name": _TOOL, "arguments": arguments}}


_WITH_SYSTEM = [{"role": "system", "content": _INSTRUCTED}, _user()]
_TURN_BY_TURN = [_user(), _assistant(), _user()]
