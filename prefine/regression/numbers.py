"""The number that an answer states, in digits or in English words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import regex
from pydantic import Field

from prefine.regression.form import CheckRule

_DIGITS = r"(?:\d{1,3}(?:(?:,|\{,\}|[\u2009\u202f\u00a0 ])\d{3}(?!\d))+|\d+)(?:\.\d+)?|\.\d+"
# A minus is a sign if a digit follows at once and none stands in front: "17 - 25", "17 -25" and "10-20" have none.
_NUMBER = regex.compile(
    rf"(?<![\w.])(?P<sign>(?<![\d)%]\s?)(?<!\w)[-−–](?=[\d.])|(?<==\s?)[-−–]\s|\b(?:negative|minus)\s+)?(?P<digits>{_DIGITS})"
)
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_WORDS = {word: value for value, word in enumerate(_SMALL.split())} | {
    word: 10 * value for value, word in enumerate(_TENS.split(), start=2)
}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 1_000_000}
_NAMES = "|".join(sorted([*_WORDS, *_SCALES], key=len, reverse=True))
_IN_WORDS = regex.compile(
    rf"\b(?P<sign>(?:negative|minus)\s+)?(?P<words>(?:{_NAMES})(?:(?:\s+and)?[\s-]+(?:{_NAMES}))*)\b", regex.IGNORECASE
)
# An announcement and what stands between it and the number: "the answer is:", "Answer: $", "\\boxed{".
_ANNOUNCED = regex.compile(
    r"(?:\banswer\b(?:\s+\w+){0,6}?\s*(?:\bis\b|\bwould be\b|\bequals\b|[:=])+"
    r"(?!\s*(?:obtained|found|calculated|computed|given)\b)|\\boxed\{)"
    r"[\s:*$€£`(\[\\]*",
    regex.IGNORECASE,
)
_LIST_NUMBER = regex.compile(r"^[ \t]*(?:\*\*)?(?:Step\s+)?\d{1,2}[.):](?:\*\*)?(?=[ \t]+\D|[ \t]*$)", regex.MULTILINE)
_OPERATION = regex.compile(r"\d\s*[-−+*/x×÷^]\s*\d")
# "5 or 6" states neither.
_ALTERNATIVES = regex.compile(r"\d\s*,?\s+or\s+[-−–$]?\d", regex.IGNORECASE)
# After these words the first number no longer holds: "5? No, it is 6."
_CORRECTED = regex.compile(r"\b(?:no|actually|wait|sorry|wrong|incorrect)\b\s*[,.:;!—–-]", regex.IGNORECASE)
_FORMATTING = regex.compile(r"\*\*|__|`|\\(?:text|mathrm)\b|\\[,!;() \[\]]")


class StatedNumber(CheckRule):
    """The answer states this number, and no other as its result.

    A result that is announced ("the answer is 12") decides. Otherwise the first or the last number of the answer must
    be it, the first one only if the answer does not correct itself. Numbers of the prompt are not counted: an answer
    repeats them. An answer that names alternatives ("5 or 6") states none.

    Attributes:
        value: the right number.
        given: numbers of the prompt, and others that a right answer may end with.
        tolerance: largest difference that counts as right.
    """

    rule: Literal["number"] = "number"
    value: float
    given: list[float] = Field(default_factory=list)
    tolerance: float = 1e-9

    def holds(self, answer: str) -> bool:
        text = _FORMATTING.sub("", _without_list_numbers(answer))
        announced = [number for match in _ANNOUNCED.finditer(text) if (number := _number_at(text, match.end()))]
        if announced:
            return self._right(announced[-1][0])
        stated = self._new(_in_digits(text)) or self._new(_in_words(text))
        if not stated or _ALTERNATIVES.search(text):
            return False
        return self._right(stated[-1]) or (self._right(stated[0]) and not _CORRECTED.search(text))

    def _new(self, found: list[float]) -> list[float]:
        """Those that are not repeated from the prompt."""
        return [number for number in found if self._right(number) or not self._was_given(number)]

    def _right(self, number: float) -> bool:
        return math.isclose(number, self.value, rel_tol=0, abs_tol=self.tolerance)

    def _was_given(self, number: float) -> bool:
        return any(math.isclose(number, given, abs_tol=1e-9) for given in self.given)


def numbers(text: str) -> list[float]:
    """The numbers in digits; those in words if there are none in digits."""
    return _in_digits(text) or _in_words(text)


def _in_digits(text: str) -> list[float]:
    return [_value(match) for match in _NUMBER.finditer(text)]


def _in_words(text: str) -> list[float]:
    return [
        (-1 if match["sign"] else 1) * value
        for match in _IN_WORDS.finditer(text)
        if (value := from_words(match["words"])) is not None
    ]


def from_words(text: str) -> float | None:
    """The number of English number words: "one hundred and forty-two"; None if they make none."""
    total, part, seen = 0, 0, False
    for word in regex.split(r"[\s-]+", text.lower().strip()):
        if word == "and" and seen:
            continue
        if word in _WORDS:
            part += _WORDS[word]
        elif word == "hundred":
            part = max(part, 1) * 100
        elif word in _SCALES:
            total, part = total + max(part, 1) * _SCALES[word], 0
        else:
            return None
        seen = True
    return float(total + part) if seen else None


def _value(match: regex.Match[str]) -> float:
    value = float(regex.sub(r"[^\d.]", "", match["digits"]))
    return -value if match["sign"] else value


def _number_at(text: str, start: int) -> tuple[float] | None:
    """The number within the next few characters, before the line or the sentence ends."""
    part = regex.split(r"\n|[,.!?;](?:\s|$)|\b(?:because|since|as)\b", text[start : start + 60], maxsplit=1)[0]
    found = list(_equalities(part))
    if not found and not _OPERATION.search(part):
        found = numbers(part)[:1]
    return (found[-1],) if found else None


def _equalities(text: str) -> Iterator[float]:
    """What stands to the right of equals signs: "12 + 5 = 17"."""
    for part in text.split("=")[1:]:
        if found := numbers(part):
            yield found[0]


def _without_list_numbers(text: str) -> str:
    """Without the numbers that count a list's lines or steps: those of at least two lines, beginning with 1."""
    marks = _LIST_NUMBER.findall(text)
    is_list = len(marks) > 1 and "1" in regex.findall(r"\d+", marks[0])
    return str(_LIST_NUMBER.sub("", text)) if is_list else text
