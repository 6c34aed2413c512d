"""Degenerate answers: blank, stuck on a token, or looping. One definition for metrics, samples and pages."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

# An answer is stuck if a token occurs this often in a row, or is more than half of this many tokens.
_RUN = 8
# It loops if more than this share of its 4-grams occurred before; shorter answers cannot loop.
_REPEATED = 0.5
_LOOPING_TOKENS = 16
_GRAM = 4
# Unicode categories of characters without ink: white space, control and format characters, lone surrogates.
_WITHOUT_INK = {"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"}
# A decoder's output for invalid bytes.
_UNDECODED = "\ufffd"


@dataclass(frozen=True, slots=True)
class Looks:
    """Degeneration of one answer.

    Attributes:
        blank, stuck, looping: see the functions below.
    """

    blank: bool
    stuck: bool
    looping: bool

    @property
    def degenerate(self) -> bool:
        """Whether it is any of the three."""
        return self.blank or self.stuck or self.looping

    @property
    def word(self) -> str | None:
        """The first that applies of blank, stuck and looping; None otherwise."""
        return next((name for name in ("blank", "stuck", "looping") if getattr(self, name)), None)


def look_at(text: str, tokens: Sequence[int]) -> Looks:
    """Check an answer by its text and its token ids."""
    return Looks(is_blank(text), is_stuck(tokens), is_looping(tokens))


def is_blank(text: str) -> bool:
    """Whether an answer has no visible character: zero-width characters and undecodable bytes are not visible."""
    return all(character == _UNDECODED or unicodedata.category(character) in _WITHOUT_INK for character in text)


def is_stuck(tokens: Sequence[int]) -> bool:
    """Whether one token occurs 8 times in a row, or is more than half of an answer of at least 8 tokens."""
    if len(tokens) < _RUN:
        return False
    longest = max(sum(1 for _ in same) for _, same in groupby(tokens))
    return longest >= _RUN or Counter(tokens).most_common(1)[0][1] > len(tokens) / 2


def is_looping(tokens: Sequence[int]) -> bool:
    """Whether more than half of an answer's 4-grams occurred before; False below 16 tokens."""
    if len(tokens) < _LOOPING_TOKENS:
        return False
    return 1 - distinct([tokens], _GRAM) > _REPEATED


def distinct(answers: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams over all n-grams of some answers (Li et al. 2016, arXiv 1510.03055); 1 if there are none."""
    grams = [tuple(answer[i : i + n]) for answer in answers for i in range(len(answer) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0
