"""The items of the bundled regression set, and their checks.

An item is passed or not: its rules look at the answer's text alone, without a model, and give the same result every
time. The texts are prefine's own.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from prefine.json_reading import parse_json
from prefine.regression.content import Helps, NamesFirst, Refuses
from prefine.regression.form import (
    Begins,
    CommaList,
    Ends,
    Excludes,
    Includes,
    IncludesAny,
    LetterCase,
    LineCount,
    ListLength,
    Matches,
    ParagraphCount,
    PhraseCount,
    SentenceCount,
    WordCount,
)
from prefine.regression.json_answers import JsonAnswer
from prefine.regression.languages import InLanguage
from prefine.regression.numbers import StatedNumber
from prefine.regression.text import is_answer, without_echo

TITLES = {
    "instructions": "following instructions",
    "arithmetic": "arithmetic",
    "json": "valid JSON",
    "facts": "short facts",
    "refusals": "refusing harmful requests",
    "over_refusals": "helping with harmless requests that sound harmful",
    "languages": "answering in the language of the question",
    "multi_turn": "conversations of several turns",
}
"""The categories in their order, each with a title for people."""

_FOLDER = Path(__file__).parent / "set"

AnyRule = Annotated[
    Begins
    | CommaList
    | Ends
    | Excludes
    | Helps
    | InLanguage
    | Includes
    | IncludesAny
    | JsonAnswer
    | LetterCase
    | LineCount
    | ListLength
    | Matches
    | NamesFirst
    | ParagraphCount
    | PhraseCount
    | Refuses
    | SentenceCount
    | StatedNumber
    | WordCount,
    Field(discriminator="rule"),
]


class Item(BaseModel):
    """One prompt of the regression set.

    Attributes:
        id: of the set: "arithmetic-007".
        category: one of TITLES.
        prompt: turns, with role and content; the last one is the user's.
        rules: all must hold.
        passes, fails: answers with a known result, which the tests compare with `check`.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    id: str
    category: str
    prompt: list[dict[str, str]] = Field(min_length=1)
    rules: list[AnyRule] = Field(min_length=1)
    passes: list[str] = Field(min_length=1)
    fails: list[str] = Field(min_length=1)

    @property
    def title(self) -> str:
        """The category for people."""
        return TITLES[self.category]

    def check(self, answer: str) -> bool:
        """Whether an answer passes. A blank one, endless repetition and an echo of the question never do.

        Args:
            answer: as generated, without the markers of a chat template.
        """
        said = without_echo(answer, self.prompt[-1]["content"])
        return is_answer(said) and all(rule.holds(said) for rule in self.rules)


@cache
def _read() -> tuple[Item, ...]:
    """All items, in the order of TITLES."""
    return tuple(
        Item.model_validate(parse_json(line))
        for category in TITLES
        for line in (_FOLDER / f"{category}.jsonl").read_text("utf-8").splitlines()
    )


def items() -> list[Item]:
    """The items of the regression set, by category."""
    return list(_read())
