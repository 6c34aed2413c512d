"""Answers that say nothing, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefine.degeneration import Looks, distinct, is_blank, is_looping, is_stuck, look_at

PLAIN = list(range(40))


@pytest.mark.parametrize(
    ("text", "blank"),
    [
        ("", True),
        (" \n\t\u00a0\u3000", True),
        ("\u200b\u2060\ufeff\u00ad", True),  # zero-width characters and a soft hyphen
        ("\x00\x1b", True),
        ("\ufffd \ufffd", True),  # bytes that are no character
        ("no", False),
        (".", False),
        ("\u200b\u0301a", False),
        ("👍", False),
    ],
)
def test_blank(text: str, blank: bool) -> None:
    assert is_blank(text) is blank


@pytest.mark.parametrize(
    ("tokens", "stuck"),
    [
        ([7] * 7, False),  # too short to tell
        ([7] * 8, True),
        ([*PLAIN, *[7] * 7], False),
        ([*PLAIN, *[7] * 8], True),  # eight in a row
        ([1, 7, 2, 7, 3, 7, 4, 7], False),  # half, not more
        ([1, 7, 2, 7, 3, 7, 7, 7], True),
        (PLAIN, False),
        ([], False),
    ],
)
def test_stuck(tokens: list[int], stuck: bool) -> None:
    assert is_stuck(tokens) is stuck


@pytest.mark.parametrize(
    ("tokens", "loops"),
    [
        ([1, 2, 3] * 5, False),  # 15 tokens: too short to tell
        ([1, 2, 3, 4] * 4, True),  # 13 4-grams, 4 different ones
        (PLAIN, False),
        # 12 + 5 4-grams are new, of 33: 48 % of them; and of one more round of 25: 36 %.
        ([*range(12), *[1, 2, 3, 4, 5] * 5], True),
        ([*range(30), *[1, 2, 3, 4, 5] * 2], False),
    ],
)
def test_loops(tokens: list[int], loops: bool) -> None:
    assert is_looping(tokens) is loops


def test_distinct() -> None:
    assert distinct([[1, 2, 1, 2], [3]], 1) == pytest.approx(3 / 5)
    assert distinct([[1, 2, 1, 2], [3]], 2) == pytest.approx(2 / 3)
    assert distinct([[1], []], 2) == 1.0


@given(st.lists(st.integers(0, 5), max_size=40), st.text(max_size=5))
def test_any_of_the_three_is_degenerate(tokens: list[int], text: str) -> None:
    looks = look_at(text, tokens)
    assert looks == Looks(is_blank(text), is_stuck(tokens), is_looping(tokens))
    assert looks.degenerate is (looks.word is not None)
    assert looks.word is None or getattr(looks, looks.word)


@given(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=3))
def test_what_has_a_visible_character_is_not_blank(text: str) -> None:
    assert is_blank(text) is (set(text) == {"\ufffd"})
