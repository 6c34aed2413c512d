"""Answers that no longer say anything, told from their tokens alone: what a policy writes when it has been broken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

# An answer is stuck on a token that comes so often in a row, or makes up more than half of so many tokens.
_RUN = 8
# It loops where more than this share of its 4-grams have been there before; shorter answers cannot.
_REPEATED = 0.5
_LOOPING_TOKENS = 16
_GRAM = 4


def is_blank(text: str) -> bool:
    """Whether an answer has no text."""
    return not text.strip()


def is_stuck(tokens: Sequence[int]) -> bool:
    """Whether one token comes 8 times in a row, or makes up more than half of an answer of at least 8 tokens."""
    if len(tokens) < _RUN:
        return False
    longest = max(sum(1 for _ in same) for _, same in groupby(tokens))
    return longest >= _RUN or Counter(tokens).most_common(1)[0][1] > len(tokens) / 2


def is_looping(tokens: Sequence[int]) -> bool:
    """Whether more than half of an answer's 4-grams have been there before; only of at least 16 tokens."""
    if len(tokens) < _LOOPING_TOKENS:
        return False
    return 1 - distinct([tokens], _GRAM) > _REPEATED


def distinct(answers: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams over all n-grams of some answers (Li et al. 2016, arXiv 1510.03055); 1 where there are none."""
    grams = [tuple(answer[i : i + n]) for answer in answers for i in range(len(answer) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def degenerate(text: str, tokens: Sequence[int]) -> bool:
    """Whether an answer is blank, stuck or looping."""
    return is_blank(text) or is_stuck(tokens) or is_looping(tokens)
