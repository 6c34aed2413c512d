"""Chat lists, HH transcripts and plain prompts -> turns: (role, text) in the order they were said."""

from __future__ import annotations

import re
from typing import Any

from prefine.data.rows import RowError, kind_of
from prefine.records import Role

Turn = tuple[Role, str]

_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "human": "user",  # ShareGPT's names
    "gpt": "assistant",
}
_MARKER = re.compile(r"\n\n(Human|Assistant):")
_MARKER_ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
_TOOL_KEYS = ("tool_calls", "function_call")


def said_text(value: Any, field: str) -> str:
    """The value as a text that says something, unchanged.

    Raises:
        RowError: not a text, or a blank one.
    """
    if not isinstance(value, str):
        raise RowError(field, f"is {kind_of(value)}, not text")
    if not value or value.isspace():
        raise RowError(field, "is blank")
    return value


def chat_turns(value: Any, field: str) -> list[Turn]:
    """The turns of a chat list: objects with `role` and `content`, or ShareGPT's `from` and `value`.

    Raises:
        RowError: not a list of such objects; an unknown role; a turn without text, with tool calls or with weight 0.
    """
    if not isinstance(value, list):
        raise RowError(field, f"is {kind_of(value)}, not a list of turns")
    if not value:
        raise RowError(field, "is an empty list")
    return [_chat_turn(turn, f"{field}[{index}]") for index, turn in enumerate(value)]


def _chat_turn(turn: Any, field: str) -> Turn:
    if not isinstance(turn, dict):
        raise RowError(field, f"is {kind_of(turn)}, not a turn")
    role_key, text_key = ("role", "content") if "role" in turn else ("from", "value")
    name = turn.get(role_key)
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        found = repr(name[:40]) if isinstance(name, str) else kind_of(name)
        raise RowError(f"{field}.{role_key}", f"is {found}, not one of {', '.join(_ROLES)}")
    # Without its tool calls a turn is not what was said; and one with weight 0 asks not to be learned.
    if any(turn.get(key) for key in _TOOL_KEYS):
        raise RowError(field, "has tool calls, which prefine does not learn")
    if turn.get("weight", 1) == 0:
        raise RowError(field, "has weight 0, which prefine does not honour")
    return role, said_text(turn.get(text_key), f"{field}.{text_key}")


def is_transcript(value: Any) -> bool:
    """Whether the value is an HH transcript: a text that opens with one of its two markers."""
    return isinstance(value, str) and value.startswith(("\n\nHuman:", "\n\nAssistant:"))


def transcript_turns(text: str, field: str, *, open_end: bool = False) -> list[Turn]:
    """The turns of an HH transcript, exactly as marked: one speaker may come twice in a row.

    Only "\\n\\nHuman:" and "\\n\\nAssistant:" part turns; the white space around a turn belongs to the format.
    `open_end` allows a last "\\n\\nAssistant:" with nothing behind it, which marks where an answer would stand.

    Raises:
        RowError: a turn without text.
    """
    pieces = _MARKER.split(text)[1:]
    turns: list[Turn] = [
        (_MARKER_ROLES[name], said.strip()) for name, said in zip(pieces[::2], pieces[1::2], strict=True)
    ]
    if open_end and turns[-1] == ("assistant", ""):
        turns.pop()
    for number, (_, said) in enumerate(turns, 1):
        if not said:
            raise RowError(
                field, "ends with an empty turn" if number == len(turns) else f"has no text in turn {number}"
            )
    return turns


def merge_repeats(turns: list[Turn]) -> list[Turn]:
    """Join what one speaker said in several turns in a row, with the blank line the markers stood behind.

    HH has such rows: a blank line inside an answer was recorded as a second turn.
    """
    merged: list[Turn] = []
    for role, said in turns:
        if merged and merged[-1][0] == role:
            merged[-1] = (role, f"{merged[-1][1]}\n\n{said}")
        else:
            merged.append((role, said))
    return merged


def prompt_turns(value: Any, field: str) -> list[Turn]:
    """The turns of a prompt: a chat list, an HH transcript, or one text that a user said.

    Raises:
        RowError: none of these, or blank.
    """
    if isinstance(value, list):
        return chat_turns(value, field)
    if is_transcript(value):
        return merge_repeats(transcript_turns(value, field, open_end=True))
    return [("user", said_text(value, field))]
