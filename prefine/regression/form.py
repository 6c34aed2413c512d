"""Rules on the form of an answer: counts, case, beginnings and ends, lists."""

from __future__ import annotations

from typing import Literal

import regex
from pydantic import BaseModel, ConfigDict, Field

from prefine.regression.text import (
    count_of,
    filled_lines,
    list_lines,
    paragraphs,
    place_of,
    plain,
    sentences,
    unwrapped,
    words,
)


class CheckRule(BaseModel):
    """A rule that an answer keeps or breaks; `rule` names its kind."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    def holds(self, answer: str) -> bool:
        """Whether the answer keeps it."""
        raise TypeError(f"{type(self).__name__} has no check")


class _Counted(CheckRule):
    """A count within bounds, both included; `most` None is no upper bound."""

    least: int = 0
    most: int | None = None

    def within(self, count: int) -> bool:
        return self.least <= count and (self.most is None or count <= self.most)


class WordCount(_Counted):
    """The number of words."""

    rule: Literal["words"] = "words"

    def holds(self, answer: str) -> bool:
        return self.within(len(words(answer)))


class SentenceCount(_Counted):
    """The number of sentences."""

    rule: Literal["sentences"] = "sentences"

    def holds(self, answer: str) -> bool:
        return self.within(len(sentences(answer)))


class LineCount(_Counted):
    """The number of lines that are not empty."""

    rule: Literal["lines"] = "lines"

    def holds(self, answer: str) -> bool:
        return self.within(len(filled_lines(answer)))


class ParagraphCount(_Counted):
    """The number of paragraphs, with empty lines between them."""

    rule: Literal["paragraphs"] = "paragraphs"

    def holds(self, answer: str) -> bool:
        return self.within(len(paragraphs(answer)))


class ListLength(_Counted):
    """The number of list lines, each of at most `words_each` words if that is set."""

    rule: Literal["list"] = "list"
    marker: Literal["any", "bullet", "number"] = "any"
    words_each: int | None = None

    def holds(self, answer: str) -> bool:
        found = list_lines(answer, self.marker)
        short = self.words_each is None or all(len(words(line)) <= self.words_each for line in found)
        return short and self.within(len(found))


class CommaList(_Counted):
    """The number of items on a line that separates short items by commas; "Sure, here they are:" is no item."""

    rule: Literal["comma_list"] = "comma_list"

    def holds(self, answer: str) -> bool:
        return any(self._fits(line) for line in filled_lines(answer))

    def _fits(self, line: str) -> bool:
        parts = regex.split(r",\s*(?:and\s+|or\s+)?", line.rpartition(": ")[2].strip(" .!*\"'`"))
        return self.within(len(parts)) and all(1 <= len(words(part)) <= 3 for part in parts)


class PhraseCount(_Counted):
    """How often a phrase stands in the answer."""

    rule: Literal["times"] = "times"
    phrase: str

    def holds(self, answer: str) -> bool:
        return self.within(count_of(self.phrase, answer))


class LetterCase(CheckRule):
    """All letters in lower or in upper case."""

    rule: Literal["case"] = "case"
    case: Literal["lower", "upper"]

    def holds(self, answer: str) -> bool:
        letters = [character for character in answer if character.lower() != character.upper()]
        return len(letters) > 2 and all(
            character == (character.lower() if self.case == "lower" else character.upper()) for character in letters
        )


class Includes(CheckRule):
    """All of some phrases."""

    rule: Literal["includes"] = "includes"
    phrases: list[str]

    def holds(self, answer: str) -> bool:
        return all(place_of(phrase, answer) >= 0 for phrase in self.phrases)


class IncludesAny(CheckRule):
    """At least one of some phrases."""

    rule: Literal["includes_any"] = "includes_any"
    phrases: list[str]

    def holds(self, answer: str) -> bool:
        return any(place_of(phrase, answer) >= 0 for phrase in self.phrases)


class Excludes(CheckRule):
    """None of some phrases, and none of some characters in either case."""

    rule: Literal["excludes"] = "excludes"
    phrases: list[str] = Field(default_factory=list)
    characters: str = ""

    def holds(self, answer: str) -> bool:
        folded = answer.casefold()
        return not any(place_of(phrase, answer) >= 0 for phrase in self.phrases) and not any(
            character in folded for character in self.characters
        )


class Begins(CheckRule):
    """One of some beginnings, in any case, behind quotation marks and emphasis."""

    rule: Literal["begins"] = "begins"
    texts: list[str]

    def holds(self, answer: str) -> bool:
        return any(plain(unwrapped(answer)).startswith(plain(text)) for text in self.texts)


class Ends(CheckRule):
    """One of some ends, in any case, within quotation marks and emphasis."""

    rule: Literal["ends"] = "ends"
    texts: list[str]

    def holds(self, answer: str) -> bool:
        return any(plain(unwrapped(answer)).endswith(plain(text)) for text in self.texts)


class Matches(CheckRule):
    """A regular expression is found; ^ and $ are the text's ends, stripped."""

    rule: Literal["matches"] = "matches"
    pattern: str

    def holds(self, answer: str) -> bool:
        return regex.search(self.pattern, answer.strip(), timeout=1) is not None
