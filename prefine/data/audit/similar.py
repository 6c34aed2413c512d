"""Nearly equal texts: MinHash signatures of three-word shingles, found through locality-sensitive hashing (rensa).

The Jaccard similarity of two sets of shingles is estimated by the share of equal places in their signatures (Broder
1997), of which the low 16 bits are kept (b-bit minwise hashing, Li and König 2010).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

THRESHOLD = 0.8
_PERMUTATIONS = 128
# A pair as similar as the threshold shares one of 16 bands of 8 values with probability 0.95, one of 0.9 always.
_BANDS = 16
_SEED = 42
BLOCK = 500
"""Texts that are looked up at once."""
_MOST_CANDIDATES = 64
# Words; a character of a script without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) is one.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_ASCII_WORDS = re.compile(r"\w+", re.ASCII)
_NUMBERS = re.compile(r"\d+")
_WORDS = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")

T = TypeVar("T")
Signature = NDArray[np.uint16]


def shingles(text: str) -> list[str]:
    """The text's runs of three words; a shorter text is one shingle."""
    words = (_ASCII_WORDS if text.isascii() else _WORDS).findall(text.lower())
    if len(words) < 3:
        return [" ".join(words) or text]
    return [f"{a} {b} {c}" for a, b, c in zip(words, words[1:], words[2:], strict=False)]


def numbers_in(text: str) -> int:
    """Hash of the numbers in a text: rows that differ in a number are different, as in exercises from one template."""
    return hash(tuple(_NUMBERS.findall(text)))


def signatures(sets: Sequence[Sequence[str]]) -> Signature:
    """The signatures of sets of shingles, (sets, permutations)."""
    from rensa import RMinHash

    rows = RMinHash.digest_matrix_from_token_sets(sets, _PERMUTATIONS, _SEED).to_rows()
    found: Signature = np.asarray(rows, dtype=np.uint32).astype(np.uint16)
    return found


def similarity(first: Signature, second: Signature) -> float:
    """The estimated Jaccard similarity; its standard error is at most 0.045."""
    return float((first == second).mean())


class SimilarTexts(Generic[T]):
    """An index of texts by their shingles."""

    def __init__(self) -> None:
        from rensa import RMinHashLSH

        self._index = RMinHashLSH(THRESHOLD, _PERMUTATIONS, _BANDS)
        self._held: list[T] = []

    def add(self, sketch: Any, held: T) -> None:
        """Add a text by its rensa sketch, with what is to be found by it."""
        self._index.insert(len(self._held), sketch)
        self._held.append(held)

    def candidates(self, sketch: Any) -> list[T]:
        """What was added with texts that may be similar, the earliest first."""
        return [self._held[key] for key in sorted(self._index.query(sketch))[:_MOST_CANDIDATES]]


def sketches(sets: Sequence[Sequence[str]]) -> list[Any]:
    """rensa's sketches of sets of shingles, for an index."""
    from rensa import RMinHash

    return list(RMinHash.from_token_sets(sets, _PERMUTATIONS, _SEED))
