"""Rules on the form of answers, beyond the items' own references."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from prefine.regression.form import (
    Begins,
    CheckRule,
    CommaList,
    Ends,
    Excludes,
    LetterCase,
    LineCount,
    ListLength,
    ParagraphCount,
    PhraseCount,
    SentenceCount,
    WordCount,
)


@pytest.mark.parametrize(
    ("kind", "one", "two", "three"),
    [
        (WordCount, "a", "a b", "a b c"),
        (SentenceCount, "One b.", "One. Two.", "One. Two. Six."),
        (LineCount, "a", "a\n\nb", "a\nb\nc"),
        (ParagraphCount, "a", "a\n\nb", "a\n\nb\n\nc"),
        (ListLength, "- a", "- a\n- b", "- a\n- b\n- c"),
        (CommaList, "a", "a, b", "a, b, c"),
    ],
)
def test_bounds_of_counts(kind: type[WordCount], one: str, two: str, three: str) -> None:
    texts = (one, two, three)
    assert [kind(least=2, most=2).holds(text) for text in texts] == [False, True, False]
    assert [kind(least=2).holds(text) for text in texts] == [False, True, True]
    assert [kind(most=2).holds(text) for text in texts] == [True, True, False]


def test_phrases_are_counted() -> None:
    assert PhraseCount(phrase="tea", least=2, most=2).holds("Tea or tea?")
    assert not PhraseCount(phrase="tea", least=2, most=2).holds("Tea or team?")


def test_case() -> None:
    assert LetterCase(case="lower").holds("straße 5!")
    assert not LetterCase(case="lower").holds("Straße")
    assert LetterCase(case="upper").holds("ABC 5!")
    assert not LetterCase(case="upper").holds("123")


def test_ends_and_beginnings_ignore_what_wraps_a_text() -> None:
    assert Begins(texts=["Dear friend"]).holds('**"dear  friend, hello"**')
    assert not Begins(texts=["Dear friend"]).holds("Oh dear friend")
    assert Ends(texts=["That is all."]).holds("Bye.\n\n_That is all._\n".replace("_", "**"))
    assert not Ends(texts=["That is all."]).holds("That is all. Bye.")


def test_characters_in_either_case() -> None:
    assert not Excludes(characters="e").holds("Elk")
    assert Excludes(characters="e").holds("Cat")


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError):
        WordCount(at_least=3)  # type: ignore[call-arg]


def test_a_rule_without_a_check_does_not_pass_silently() -> None:
    with pytest.raises(TypeError):
        CheckRule().holds("a")
