"""What differs between two answers, word by word."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

# The comparison takes the product of both lengths, whatever the texts repeat: about 0.1 s for 2,000 words each.
_MOST_WORDS = 2_000
# A word that is in both texts weighs more than the space beside it.
_OF_A_WORD, _OF_A_SPACE = 4, 1
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
    parts: tuple[list[Part], list[Part]] = ([], [])
    for side, words, common in zip(parts, (left, right), _common(left, right), strict=True):
        for shared, places in groupby(range(len(words)), common.__contains__):
            _append(side, [words[place] for place in places], not shared)
    return parts


def _common(left: Sequence[str], right: Sequence[str]) -> tuple[set[int], set[int]]:
    """The places in both of their heaviest common subsequence (Wagner and Fischer 1974, Journal of the ACM 21)."""
    import numpy as np

    number = {word: place for place, word in enumerate(dict.fromkeys([*left, *right]))}
    others = np.array([number[word] for word in right], np.int64)
    weights = [_OF_A_SPACE if word.isspace() else _OF_A_WORD for word in left]
    best = np.zeros((len(left) + 1, len(right) + 1), np.int32)  # of the beginnings of both
    for row, (word, weight) in enumerate(zip(left, weights, strict=True)):
        with_word = np.where(others == number[word], best[row, :-1] + weight, 0)
        np.maximum.accumulate(np.maximum(best[row, 1:], with_word), out=best[row + 1, 1:])
    found: tuple[set[int], set[int]] = (set(), set())
    for one, other in _path(left, right, best, weights):
        found[0].add(one)
        found[1].add(other)
    return found


def _path(left: Sequence[str], right: Sequence[str], best: Any, weights: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The places of the same words, from the end; neighbours stay neighbours where that costs nothing."""
    row, column = len(left), len(right)
    while row and column:
        same = left[row - 1] == right[column - 1]
        if same and best[row, column] == best[row - 1, column - 1] + weights[row - 1]:
            row, column = row - 1, column - 1
            yield row, column
        elif best[row, column] == best[row - 1, column]:
            row -= 1
        else:
            column -= 1


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
