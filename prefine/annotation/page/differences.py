"""What differs between two answers, word by word."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

# The comparison takes quadratic time; 2,000 words each take about 0.1 s.
_MOST_WORDS = 2_000
_WORDS = re.compile(r"\s+|\w+|[^\w\s]")
_LINES = re.compile(r"[^\n]*\n|[^\n]+")

Part = tuple[str, bool]


def differences(first: str, second: str) -> tuple[list[Part], list[Part]]:
    """Both texts in parts, each with whether the other text lacks it. Long texts are compared by lines.

    The parts of a text joined are the text. Parts that differ and parts that do not alternate.
    """
    for unit in (_WORDS, _LINES):
        left, right = unit.findall(first), unit.findall(second)
        if max(len(left), len(right)) <= _MOST_WORDS:
            break
    else:
        return [(first, first != second)], [(second, first != second)]
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    parts: tuple[list[Part], list[Part]] = ([], [])
    for operation, *bounds in matcher.get_opcodes():
        for side, words, (start, end) in zip(parts, (left, right), (bounds[:2], bounds[2:]), strict=True):
            _append(side, words[start:end], operation != "equal")
    return parts


def _append(parts: list[Part], words: Sequence[str], differs: bool) -> None:
    text = "".join(words)
    # A single space between two changed words is no place where the texts agree to an eye.
    if parts and text and not differs and text.isspace() and "\n" not in text and parts[-1][1]:
        differs = True
    if not text:
        return
    if parts and parts[-1][1] == differs:
        parts[-1] = (parts[-1][0] + text, differs)
    else:
        parts.append((text, differs))
