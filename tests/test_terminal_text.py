"""Streamed answers are wrapped by words and shown in columns, whatever the pieces they come in."""

from __future__ import annotations

import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from prefine.terminal_text import LEAST_COLUMN, Columns, Stream, WordWrap, column_width


def wrapped(text: str, width: int, size: int = 1) -> str:
    wrap = WordWrap(width)
    return "".join(wrap.feed(text[at : at + size]) for at in range(0, len(text), size)) + wrap.finish()


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("the quick brown fox", ["the quick", "brown fox"]),
        ("0123456789 ab", ["0123456789", "ab"]),
        ("ab 0123456789xyz", ["ab", "0123456789", "xyz"]),
        ("a\n\n  b c", ["a", "", "  b c"]),
        ("if x:\n    return yes", ["if x:", "    return", "yes"]),
        ("a  b", ["a  b"]),
        ("a\tb", ["a       b"]),
        ("12345678 \t9", ["12345678", "9"]),
        ("你好你好你好", ["你好你好你", "好"]),
        ("word 你好你好", ["word 你好", "你好"]),
        ("", [""]),
    ],
)
def test_lines_break_between_words(text: str, lines: list[str]) -> None:
    assert wrapped(text, 10).split("\n") == lines


@given(st.lists(st.text("abcdefgh", min_size=1, max_size=12), max_size=30), st.integers(12, 40), st.integers(1, 7))
def test_plain_words_break_as_textwrap_breaks_them(words: list[str], width: int, size: int) -> None:
    assert wrapped(" ".join(words), width, size).split("\n") == (textwrap.wrap(" ".join(words), width) or [""])


@given(st.text("ab \n\t你-", max_size=80), st.integers(4, 20), st.integers(1, 7))
def test_no_line_is_too_long_and_nothing_but_blanks_is_lost(text: str, width: int, size: int) -> None:
    shown = wrapped(text, width, size)
    assert all(cell_len(line) <= width for line in shown.split("\n"))
    assert "".join(shown.split()) == "".join(text.split())


def test_a_word_is_shown_as_soon_as_it_has_ended() -> None:
    shown: list[str] = []
    stream = Stream(shown.append, 20)
    for piece in ("Hel", "lo", " wor", "ld", "!\nNew"):
        stream.feed(piece)
    assert shown == ["Hello", " world!\n"]
    stream.finish()
    assert shown[-1] == "New\n"


def test_a_pipe_gets_text_as_it_is_and_an_answer_that_says_nothing_no_line() -> None:
    shown: list[str] = []
    stream = Stream(shown.append, None)
    stream.feed("a " * 100)
    stream.finish()
    assert "".join(shown) == "a " * 100 + "\n"
    silent = Stream(shown.append, None)
    silent.finish()
    assert len(shown) == 2


def test_two_columns_fit_into_eighty_cells() -> None:
    assert column_width(80, 2) >= LEAST_COLUMN
    assert column_width(78, 2) < LEAST_COLUMN


def test_columns_show_a_line_as_soon_as_both_have_it() -> None:
    shown: list[str] = []
    columns = Columns(shown.append, 25, ["left", "a very long title"])
    assert shown == ["left        │ a very lo…\n", "────────────┼────────────\n"] or len(shown) == 2
    del shown[:]
    columns.feed(0, "one two three four five ")
    assert shown == []
    columns.feed(1, "alpha beta gamma ")
    assert shown == ["one two     │ alpha beta\n"]
    columns.finish(1)
    assert shown[1:] == ["three four  │ gamma\n"]
    columns.feed(0, "six seven eight")
    assert shown[2:] == ["five six    │\n"]
    columns.finish(0)
    assert shown[3:] == ["seven eight │\n"]


@given(st.lists(st.text("ab 你\n", max_size=60), min_size=2, max_size=2), st.integers(30, 60), st.integers(1, 9))
def test_columns_hold_what_each_answer_says(answers: list[str], width: int, size: int) -> None:
    shown: list[str] = []
    columns = Columns(shown.append, width, ["x", "y"])
    for at in range(0, max(map(len, answers)), size):
        for column, answer in enumerate(answers):
            columns.feed(column, answer[at : at + size])
    columns.finish(0)
    columns.finish(1)
    lines = "".join(shown).split("\n")[2:-1]
    assert all(cell_len(line) <= width for line in lines)
    parts = [(line + " ").split(" │ ") if " │ " in line + " " else [line, ""] for line in lines]
    for column, answer in enumerate(answers):
        assert "".join("".join(part[column].split()) for part in parts) == "".join(answer.split())
