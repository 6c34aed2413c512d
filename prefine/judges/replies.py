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
# Signs that only set a word off. Others, such as ! and ~, may deny it.
_LAST_LINE = re.compile(
    rf"(?:[\s*_#>\"'`(]*(?:final\s+)?verdict[\s*_:=\"'`(-]*)?[\s*_#>\"'`(]*({_WORD})[\s*_.\"'`)]*", re.IGNORECASE
)
_LONGEST_LAST_LINE = 40
_KEY = re.compile(r'"verdict"\s*:')
_FENCE = "```"
_THOUGHT = ("<think>", "</think>")


def verdict_in(reply: str) -> Preferred | None:
    """The verdict of a reply; None if it holds none, or two different ones.

    Only the judge's last word counts, as earlier text may quote an answer that tells the judge what to write. It is a
    JSON object with `verdict` "A", "B" or "tie" (the whole reply, or the last line), a last line that ends with
    MT-Bench's [[A]], or a last line with nothing but A, B, C (a tie) or tie. Reasoning up to </think> is not read.
    """
    start, end = _THOUGHT
    text = reply.strip()
    if text.startswith(start) and end not in text:
        return None
    text = text.rpartition(end)[2].strip()
    if len(text) > 2 * len(_FENCE) and text.startswith(_FENCE) and text.endswith(_FENCE):
        text = text.removeprefix(_FENCE).removeprefix("json")
    text = text.removesuffix(_FENCE).strip()
    if text.startswith("{"):
        return _of_object(text)
    last = text.rpartition("\n")[2].strip()
    if last.startswith("{"):
        return _of_object(last)
    marked = {_MEANS[word.lower()] for word in _BRACKETED.findall(last)}
    if marked:
        ends = not re.search(r"\w", last.rpartition("]]")[2])
        return marked.pop() if len(marked) == 1 and ends else None
    line = _LAST_LINE.fullmatch(last) if len(last) <= _LONGEST_LAST_LINE else None
    return _MEANS[line[1].lower()] if line else None


def _of_object(text: str) -> Preferred | None:
    try:
        found = parse_json(text)
    except JsonError:
        return None
    # Of two keys `verdict`, JSON readers take the last one.
    if not isinstance(found, dict) or len(_KEY.findall(text)) != 1:
        return None
    word = found.get("verdict")
    return _MEANS.get(word.strip().lower()) if isinstance(word, str) else None
