"""Numbers in answers: how small models write them, and which number an answer states."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefine.regression.numbers import StatedNumber, from_words, numbers

SUM = StatedNumber(value=42, given=[17, 25])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1,234", [1234]),
        ("1 234", [1234]),
        ("10-20", [10, 20]),
        ("17 -25", [17, 25]),
        ("It is -8.", [-8]),
        ("1\u202f234", [1234]),
        ("1{,}234", [1234]),
        ("12.0", [12]),
        (".5", [0.5]),
        ("$3.50", [3.5]),
        ("12.", [12]),
        ("3, 4, 5", [3, 4, 5]),
        ("17-25", [17, 25]),
        ("17 - 25", [17, 25]),
        ("= -8", [-8]),
        ("(−8)", [-8]),
        ("-8", [-8]),
        ("minus 8", [-8]),
        ("minus eight", [-8]),
        ("forty-two", [42]),
        ("one hundred and forty-four", [144]),
        ("six thousand two hundred thirty", [6230]),
        ("x2 and H2O", []),
        ("someone", []),
    ],
)
def test_numbers(text: str, found: list[float]) -> None:
    assert numbers(text) == found


@pytest.mark.parametrize(
    "answer",
    [
        "42",
        "42.",
        "**42**",
        "42.0",
        "$42$",
        "Sure! The answer is 42.",
        "17 + 25 = 42",
        "17 + 25 = **42**. Check: 42 - 17 = 25.",
        "The answer is 17 + 25 = 42.",
        "The answer to 17 + 25 is: 42",
        "**Answer:** 42",
        "\\boxed{42}",
        "The answer is 17 + 25, which equals 42.",
        "- 42",
        "The answer is obtained by adding 10 + 20 = 30 and 7 + 5 = 12, which gives 42.",
        "The result is 42. To check the result: 42 - 25 = 17.",
        "The answer is 42 because 40 + 2 = 42 and 43 - 1 = 42.",
        r"\\( 17 + 25 = 42 \\)",
        "Forty-two.",
        "17 + 25 is forty-two.",
        "1. Add the tens: 10 + 20 = 30.\n2. Add the ones: 7 + 5 = 12.\n3. Add both: 30 + 12 = 42.",
        "Step 1: 10 + 20 = 30\nStep 2: 7 + 5 = 12\nStep 3: 30 + 12 = 42",
    ],
)
def test_right(answer: str) -> None:
    assert SUM.holds(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "43",
        "17 + 25",
        "The answer is 43, because 17 + 25 = 42 + 1.",
        "First I get 42 and then add 1. The answer is 43.",
        "17 + 25 = 32",
        "-42",
        "420",
        "4.2",
        "The answer is 17.",
        "I do not know.",
        "1. Add the tens: 10 + 20 = 30.\n2. Add the ones: 7 + 5 = 13.\n3. Add both: 30 + 13 = 43.",
    ],
)
def test_wrong(answer: str) -> None:
    assert not SUM.holds(answer)


@given(st.integers(-99_999, 999_999))
def test_any_number_is_read_back(value: int) -> None:
    for text in (f"{value}", f"{value:,}", f"The answer is {value:,}.", f"x = {value}.0", f"**{value}**"):
        assert numbers(text) == [value]


@given(st.integers(-9_999, 9_999), st.integers(1, 50))
def test_another_number_is_never_right(value: int, off: int) -> None:
    assert StatedNumber(value=float(value)).holds(f"It is {value}.")
    assert not StatedNumber(value=float(value)).holds(f"It is {value + off}.")


def test_words_that_are_no_number() -> None:
    assert from_words("forty apples") is None
    assert from_words("") is None


@pytest.mark.parametrize(
    "answer", ["17 + 25 = 42? No, it is 43.", "It could be 41, 42 or 43.", "42 or 43", "42. Wait, that is wrong: 43."]
)
def test_a_number_that_is_taken_back_or_one_of_several_is_not_stated(answer: str) -> None:
    assert not SUM.holds(answer)
