"""Reads the verdict in a judge's reply. Strict: a reply that could mean two things is no verdict."""

from __future__ import annotations

import re
from typing import Any

from prefine.json_reading import JsonError, parse_json
from prefine.judges.judge import Preferred

VERDICT_FORM: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {
        "name": "verdict",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"verdict": {"type": "string", "enum": ["A", "B", "tie"]}},
            "required": ["verdict"],
            "additionalProperties": False,
        },
    },
}
"""OpenAI's response_format, for endpoints that take it."""

_MEANS: dict[str, Preferred] = {"a": "first", "b": "second", "c": "tie", "tie": "tie"}
_WORD = r"(?:[ABab]|[Cc]|[Tt]ie|TIE)"
# MT-Bench's form, which some templates ask for: [[A]], [[B]], [[C]] for a tie
_BRACKETED = re.compile(rf"\[\[({_WORD})\]\]")
_LAST_LINE = re.compile(rf"(?:\W*verdict\W*)?[\W_]*({_WORD})[\W_]*", re.IGNORECASE)
_LONGEST_LAST_LINE = 40
_FENCE = "```"


def verdict_in(reply: str) -> Preferred | None:
    """The verdict of a reply; None if it holds none, or two different ones.

    A verdict is a JSON object with `verdict` "A", "B" or "tie" as the whole reply, MT-Bench's [[A]], or a last line
    with nothing but A, B, C (a tie) or tie. Reasoning in <think> before it is not read.
    """
    text = reply.strip()
    if text.startswith("<think>"):
        text = text.partition("</think>")[2].strip()
    if len(text) > 2 * len(_FENCE) and text.startswith(_FENCE) and text.endswith(_FENCE):
        text = text.removeprefix(_FENCE).removesuffix(_FENCE).removeprefix("json").strip()
    if text.startswith("{"):
        return _of_object(text)
    marked = {_MEANS[word.lower()] for word in _BRACKETED.findall(text)}
    if marked:
        return marked.pop() if len(marked) == 1 else None
    last = text.rpartition("\n")[2]
    line = _LAST_LINE.fullmatch(last) if len(last) <= _LONGEST_LAST_LINE else None
    return _MEANS[line[1].lower()] if line else None


def _of_object(text: str) -> Preferred | None:
    try:
        found = parse_json(text)
    except JsonError:
        return None
    word = found.get("verdict") if isinstance(found, dict) else None
    return _MEANS.get(word.strip().lower()) if isinstance(word, str) else None
