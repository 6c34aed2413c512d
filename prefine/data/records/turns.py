"""Chat lists, HH transcripts and plain prompts -> messages, in order."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from prefine.data.reading.rows import RowError, kind_of
from prefine.data.records.tool_calls import calls_in_text, tool_calls
from prefine.records import Message, Role

_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "human": "user",  # ShareGPT's names
    "gpt": "assistant",
    "observation": "tool",
    "developer": "system",  # OpenAI's later name
    "function": "tool",  # OpenAI's earlier name
    "tool_response": "tool",  # ms-swift's
}
# A separate turn with an assistant's call as JSON: ShareGPT's and ms-swift's.
_CALLING = ("function_call", "tool_call")
_MARKER = re.compile(r"\n\n(Human|Assistant):")
_MARKER_ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
_TEXT_BLOCKS = ("text", "input_text", "output_text")
_REASONING = ("reasoning", "reasoning_content", "thinking")
FLAGS = ("train", "loss", "weight", "loss_scale", "supervised")
"""Flags that say whether a turn or a row is learned."""
OTHER_FLAGS = ("loss_mask", "mask", "masked", "trainable")
"""Flags of other datasets, whose meaning differs between them."""
_FLAG_WORDS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
# On other turns than the assistant's, these ask for what prefine does not do; a weight of 1 is the default of every
# turn.
_ASKS_TO_LEARN = ("train", "loss")
MEDIA = ("image", "images", "video", "videos", "audio", "audios")


def said_text(value: Any, field: str) -> str:
    """The value as a text that is not blank, unchanged; text blocks are joined.

    Raises:
        RowError: not a text, or a blank one; a block of another type.
    """
    if is_blocks(value):
        value = _text_of_blocks(value, field)
    if not isinstance(value, str):
        raise RowError(field, f"is {kind_of(value)}, not text")
    if not value or value.isspace():
        raise RowError(field, "is blank")
    return value


def is_blocks(value: Any) -> bool:
    """Whether the value is a list of content blocks: objects with a `type`, none of which is a turn."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, dict) and isinstance(each.get("type"), str) and not is_turn(each) for each in value)
    )


def _text_of_blocks(blocks: list[dict[str, Any]], field: str) -> str:
    for index, block in enumerate(blocks):
        if block["type"] not in _TEXT_BLOCKS:
            raise RowError(f"{field}[{index}].type", f"is {block['type'][:40]!r}, and prefine reads text only")
        if not isinstance(block.get("text"), str):
            raise RowError(f"{field}[{index}].text", f"is {kind_of(block.get('text'))}, not text")
    return "".join(block["text"] for block in blocks)


def is_turn(value: dict[str, Any]) -> bool:
    """Whether an object names its speaker."""
    return value.get("role") is not None or value.get("from") is not None


def is_blank(value: Any) -> bool:
    """Whether a value is null, a blank text or an empty list."""
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def chat_turns(value: Any, field: str, *, may_be_empty: bool = False) -> list[Message]:
    """The turns of a chat list: objects with `role` and `content`, or ShareGPT's `from` and `value`.

    An empty system turn is dropped. A turn with only a tool call belongs to the assistant's turn before it.
    `may_be_empty` allows a list that holds no other turn.

    Raises:
        RowError: not a list of such objects; an unknown role; a turn without text; a flag, a call or a block that
            prefine does not honour.
    """
    if not isinstance(value, list):
        raise RowError(field, f"is {kind_of(value)}, not a list of turns")
    if not value:
        raise RowError(field, "is an empty list")
    turns: list[Message] = []
    for index, each in enumerate(value):
        turn, is_call = _turn(each, f"{field}[{index}]")
        if is_call and turn is not None and turns and turns[-1].role == "assistant":
            turns[-1] = _with_calls(turns[-1], turn)
        elif turn is not None:
            turns.append(turn)
    if not turns and not may_be_empty:
        raise RowError(field, "holds an empty system turn and no other")
    return turns


def lone_turn(value: dict[str, Any], field: str) -> Message:
    """A turn outside a list.

    Raises:
        RowError: see `chat_turns`.
    """
    turn, _ = _turn(value, field)
    if turn is None:
        raise RowError(field, "is an empty system turn")
    return turn


def _turn(turn: Any, field: str) -> tuple[Message | None, bool]:
    """The message (None for an empty system turn), and whether it is a call in a turn of its own."""
    if not isinstance(turn, dict):
        raise RowError(field, f"is {kind_of(turn)}, not a turn")
    by_role = turn.get("role") is not None or "from" not in turn
    role_key, text_key = ("role", "content") if by_role else ("from", "value")
    name = turn.get(role_key)
    is_call = name in _CALLING
    role = "assistant" if is_call else _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        found = repr(name[:40]) if isinstance(name, str) else kind_of(name)
        raise RowError(f"{field}.{role_key}", f"is {found}, not one of {', '.join(list(_ROLES)[:6])}, …")
    for key in MEDIA:
        if not is_blank(turn.get(key)):
            raise RowError(f"{field}.{key}", "is not empty, and prefine reads text only")
    content: Any = turn.get(text_key)
    where = f"{field}.{text_key}"
    if is_blocks(content):
        content = _text_of_blocks(content, where)
    if role == "system" and is_blank(content):
        return None, False
    calls = calls_in_text(content, where) if is_call else tool_calls(turn, field)
    says_nothing = is_call or (bool(calls) and is_blank(content))
    said = "" if says_nothing else said_text(content, where)
    message: dict[str, Any] = {"role": role, "content": said, "tool_calls": calls}
    message |= {"reasoning": _reasoning(turn, field), "supervised": _supervised(turn, role, field)}
    message |= {key: _text_of_tool(turn, key, role, field) for key in ("name", "tool_call_id")}
    try:
        return Message(**message), is_call
    except ValidationError as error:
        raise row_error(error, field, {"content": text_key}) from None


def row_error(error: ValidationError, at: str = "", names: Mapping[str, str] | None = None) -> RowError:
    """The first error in a record, at its place in the row.

    Args:
        error: pydantic's, of a record.
        at: the place of the record in the row.
        names: of the record's fields in the row.
    """
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    places = [(names or {}).get(str(part), str(part)) for part in first["loc"]]
    message = first["msg"].removeprefix("Value error, ")
    return RowError(".".join(filter(None, [at, *places])), message[:1].lower() + message[1:])


def _with_calls(turn: Message, call: Message) -> Message:
    """An assistant's turn and the call after it as one turn, which is learned if both are."""
    return turn.model_copy(
        update={
            "tool_calls": (*turn.tool_calls, *call.tool_calls),
            "reasoning": turn.reasoning or call.reasoning,
            "supervised": turn.supervised and call.supervised,
        }
    )


def _reasoning(turn: dict[str, Any], field: str) -> str | None:
    found = {key: turn[key] for key in _REASONING if not is_blank(turn.get(key))}
    texts = {said_text(value, f"{field}.{key}") for key, value in found.items()}
    if len(texts) > 1:
        raise RowError(field, f"has {' and '.join(found)}, which differ")
    return texts.pop() if texts else None


def _text_of_tool(turn: dict[str, Any], key: str, role: Role, field: str) -> str | None:
    value = turn.get(key)
    return None if role != "tool" or is_blank(value) else said_text(value, f"{field}.{key}")


def _supervised(turn: dict[str, Any], role: Role, field: str) -> bool:
    """Whether a turn is learned, by the flags that rows have: `train`, `loss` and `weight`, among others."""
    supervised = True
    for key in FLAGS:
        value = turn.get(key)
        if value is None:
            continue
        learned = flag(value, f"{field}.{key}")
        supervised &= learned
        if learned and key in _ASKS_TO_LEARN and role != "assistant":
            raise RowError(f"{field}.{key}", f"asks to learn a turn of {role}; prefine learns assistant turns only")
    if not is_blank(turn.get("train_detail")):
        raise RowError(f"{field}.train_detail", "marks parts of a turn; prefine learns whole turns only")
    for key in OTHER_FLAGS:
        if not is_blank(turn.get(key)):
            raise RowError(f"{field}.{key}", "is a flag that prefine does not read; train: false is one")
    return supervised


def flag(value: Any, field: str) -> bool:
    """A flag or weight that says whether something is learned: true or false, 1 or 0, also as text.

    Raises:
        RowError: anything else, such as a weight of 0.5.
    """
    if isinstance(value, str) and (known := _FLAG_WORDS.get(value[:20].strip().lower())) is not None:
        return known
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    found = str(value)[:40] if isinstance(value, int | float) else kind_of(value)
    raise RowError(field, f"is {found}; a turn is learned (1 or true) or not (0 or false)")


def is_transcript(value: Any) -> bool:
    """Whether the value is an HH transcript: a text that starts with one of its two markers."""
    return isinstance(value, str) and value.startswith(("\n\nHuman:", "\n\nAssistant:"))


def transcript_turns(text: str, field: str, *, open_end: bool = False) -> list[Message]:
    """The turns of an HH transcript, exactly as marked: one speaker may come twice in a row.

    Only "\\n\\nHuman:" and "\\n\\nAssistant:" separate turns; the white space around a turn belongs to the format.
    `open_end` allows a last "\\n\\nAssistant:" with nothing after it, which marks where an answer would stand.

    Raises:
        RowError: a turn without text.
    """
    pieces = _MARKER.split(text)[1:]
    turns = [(_MARKER_ROLES[name], said.strip()) for name, said in zip(pieces[::2], pieces[1::2], strict=True)]
    if open_end and turns[-1] == ("assistant", ""):
        turns.pop()
    for number, (_, said) in enumerate(turns, 1):
        if not said:
            raise RowError(
                field, "ends with an empty turn" if number == len(turns) else f"has no text in turn {number}"
            )
    return [Message(role=role, content=said) for role, said in turns]


def merge_repeats(turns: list[Message]) -> list[Message]:
    """Join consecutive turns of one speaker with the blank line before their markers.

    HH has such rows: a blank line in an answer was recorded as a second turn.
    """
    merged: list[Message] = []
    for turn in turns:
        if merged and merged[-1].role == turn.role:
            merged[-1] = Message(role=turn.role, content=f"{merged[-1].content}\n\n{turn.content}")
        else:
            merged.append(turn)
    return merged


def prompt_turns(value: Any, field: str) -> list[Message]:
    """The turns of a prompt: a chat list, an HH transcript, text blocks, or one text that a user said.

    Raises:
        RowError: another type, or blank.
    """
    if isinstance(value, list) and not is_blocks(value):
        return chat_turns(value, field)
    if is_transcript(value):
        return merge_repeats(transcript_turns(value, field, open_end=True))
    return [Message(role="user", content=said_text(value, field))]


def without_answer(turns: list[Message]) -> list[Message]:
    """A conversation without its last answer, and without the tool calls and results on the way to it."""
    end = len(turns)
    if end > 1 and turns[-1].role == "assistant":
        end -= 1
        while end > 1 and (turns[end - 1].role == "tool" or turns[end - 1].tool_calls):
            end -= 1
    return turns[:end]
