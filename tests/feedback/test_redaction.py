"""What is removed from texts before they are stored, and that removing it takes bounded time."""

from __future__ import annotations

from time import monotonic

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefine.errors import RecipeError
from prefine.feedback.redaction import BUDGET_S, RedactionTimeoutError, Redactor

REDACTED = [
    ("Write to jo.doe+x@mail.example.co.uk today.", "Write to [email] today."),
    ("<mailto:müller@post.example>", "<mailto:[email]>"),
    ("Call +49 151 2345 6789, please", "Call [phone], please"),
    ("(030) 123 45 67", "[phone]"),
    ("555-123-4567 or 1 (555) 123-4567", "[phone] or [phone]"),
    ("00491512345678", "[phone]"),
    ("My card is 4111 1111 1111 1111.", "My card is [card]."),  # the test number of the card schemes
    ("5500-0000-0000-0004", "[card]"),
    ("340000000000009", "[card]"),
]
KEPT = [
    "On 2026-11-26 at 10:25",
    "4111 1111 1111 1112 fails Luhn's check",
    "order 12345678 of 3.14159265",
    "100 200 300 400 500",
    "name@host without a domain",
    "x = a@b",
    "0.12345678",
]


@pytest.mark.parametrize(("text", "expected"), REDACTED)
def test_what_identifies_people_is_replaced(text: str, expected: str) -> None:
    assert Redactor().redacted(text) == expected
    assert Redactor(builtin=False).redacted(text) == text


@pytest.mark.parametrize("text", KEPT)
def test_other_numbers_stay(text: str) -> None:
    assert Redactor().redacted(text) == text


@settings(max_examples=25)
@given(st.from_regex(r"[1-9][0-9]{11,17}", fullmatch=True))
def test_one_check_digit_in_ten_makes_a_card_number(digits: str) -> None:
    """Luhn's check accepts exactly one last digit."""
    redactor = Redactor()
    cards = [digit for digit in "0123456789" if redactor.redacted(digits + digit) == "[card]"]
    assert len(cards) == 1


def test_a_whole_conversation_is_redacted_but_for_the_names_of_its_parts() -> None:
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "I am user 7, jo@mail.example"}]},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "user", "function": {"arguments": "a user"}}]},
    ]
    assert Redactor(patterns=["user"]).redacted(turns) == [
        {"role": "user", "content": [{"type": "text", "text": "I am [redacted] 7, [email]"}]},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "user", "function": {"arguments": "a [redacted]"}}]},
    ]


def test_a_pattern_that_backtracks_for_ever_is_stopped() -> None:
    start = monotonic()
    with pytest.raises(RedactionTimeoutError):
        Redactor(patterns=[r"(x+x+)+y"]).redacted("x" * 5_000)
    assert monotonic() - start < 20 * BUDGET_S


@pytest.mark.parametrize("text", ["1 " * 200_000, "a@" * 200_000, "a.a-" * 100_000, "a@" + "a." * 200_000])
def test_the_patterns_that_come_with_it_are_linear(text: str) -> None:
    start = monotonic()
    Redactor().redacted(text)
    assert monotonic() - start < 5


@pytest.mark.parametrize(("pattern", "rule"), [("(", "is not a regular expression"), ("a*", "matches the empty text")])
def test_a_pattern_that_cannot_be_used_is_refused(pattern: str, rule: str) -> None:
    with pytest.raises(RecipeError, match=f"--redact-pattern is .*{rule}"):
        Redactor(patterns=[pattern])
