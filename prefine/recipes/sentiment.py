"""The reward of the sentiment pipeline: a friendly tone, by words. docs/ppo.md describes such functions of rows."""

from __future__ import annotations

import re
from typing import Any

_FRIENDLY_WORDS = """
    absolutely apologise apologize appreciate best certainly delighted enjoy excellent glad gladly good great happy help
    hope kind lovely perfect please pleased sorry sure thank thanks warm welcome wonderful
"""
_UNFRIENDLY_WORDS = """
    annoying awful bad blame complain fault hate impossible never nonsense refuse rude stupid terrible unfortunately
    useless worst wrong
"""
_FRIENDLY, _UNFRIENDLY = frozenset(_FRIENDLY_WORDS.split()), frozenset(_UNFRIENDLY_WORDS.split())
_ENOUGH = 4
_WORD = re.compile(r"[a-z]+")


def friendliness(rows: list[dict[str, Any]]) -> list[float]:
    """Different friendly words minus different unfriendly ones, from -1 (four more unfriendly) to 1.

    Different words count, so that repeating one does not pay.

    Args:
        rows: with the text of an answer as `response`.
    """
    return [_of(str(row["response"])) for row in rows]


def _of(text: str) -> float:
    words = set(_WORD.findall(text.lower()))
    balance = len(words & _FRIENDLY) - len(words & _UNFRIENDLY)
    return max(-1.0, min(1.0, balance / _ENOUGH))
