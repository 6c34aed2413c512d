"""Words, sentences, list lines and phrases of answers; endless repetition."""

from __future__ import annotations

import pytest

from prefine.regression.text import (
    count_of,
    is_answer,
    list_lines,
    paragraphs,
    place_of,
    plain,
    sentences,
    unwrapped,
    without_echo,
    words,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("one two three", 3),
        ("**one** two - three", 3),
        ("1. one\n2. two", 2),
        ("- well-known\n- it's", 2),
        ("## Title", 1),
        ("4.5 kg!", 2),
        ("", 0),
        ("...", 0),
    ],
)
def test_words(text: str, count: int) -> None:
    assert len(words(text)) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One. Two! Three?", 3),
        ("It weighs 4.5 kg.", 1),
        ("Dr. Smith met Mr. Jones at 5 p.m. sharp.", 1),
        ("Really?! Yes...", 2),
        ('He said "no." Then he left.', 2),
        ("A title\n\nA sentence.", 2),
        ("no end", 1),
        ("今天很好。我很高兴。", 2),
        ("**Bold sentence.** Another one.", 2),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert len(sentences(text)) == count


def test_list_lines() -> None:
    text = "Here:\n- a\n* b\n• **c**: d\n1. e\n2) f\n**bold** line\n- \n12.5 kg\n--- \n  - nested"
    assert list_lines(text, "bullet") == ["a", "b", "**c**: d", "nested"]
    assert list_lines(text, "number") == ["e", "f"]
    assert len(list_lines(text)) == 6


def test_paragraphs() -> None:
    assert paragraphs("a\nb\n\n \nc\n\n---\n\n") == ["a\nb", "c"]


@pytest.mark.parametrize("text", ['"Yes."', "**Yes.**", "“Yes.”", " Yes. ", '**"Yes."**'])
def test_unwrapped(text: str) -> None:
    assert unwrapped(text) == "Yes."


def test_phrases_are_whole_words_but_where_scripts_have_no_spaces() -> None:
    assert place_of("cat", "The cats") == -1
    assert place_of("cat*", "The cats") == 4
    assert place_of("Buenos dias", "«buenos  Días»") == 1
    assert place_of("don't", "I don’t") == 2
    assert place_of("7", "一周有7天") >= 0
    assert place_of("7", "17") == -1
    assert count_of("blue", "Blue sky, **blue** sea, bluebell") == 2
    assert plain("  Ünï  *Code*  ") == "uni code"


@pytest.mark.parametrize(
    "text",
    [
        "No.",
        "五",
        "7 x 1 = 7\n7 x 2 = 14\n7 x 3 = 21\n7 x 4 = 28\n7 x 5 = 35\n7 x 6 = 42\n7 x 7 = 49\n7 x 8 = 56",
        '[{"name": "a", "age": 1}, {"name": "b", "age": 2}, {"name": "c", "age": 3}, {"name": "d", "age": 4}]',
        "| Name | Age |\n|--------------------------------------|-----|\n| Ana | 31 |",
        "1000000000000",
        "No, no, no!",
        "2 x 2 x 2 x 2 x 2 = 32",
    ],
)
def test_answers(text: str) -> None:
    assert is_answer(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "---",
        "yes " * 8,
        "hahahahahahahahahahahahahahahahahahaha",
        "I am here. " * 10,
        "好的" * 20,
        "ok " + "?" * 90,
    ],
)
def test_no_answers(text: str) -> None:
    assert not is_answer(text)


def test_echoes_are_left_out() -> None:
    question = "What is your favourite food? Answer in one sentence."
    assert without_echo(question, question).strip() == ""
    assert without_echo("what is  your favourite food?\nIt is rice.", question).strip() == "It is rice."
    assert without_echo("I like food.", question) == "I like food."
    assert without_echo("你好!请用一句话介绍一下猫。", "你好!请用一句话介绍一下猫。").strip() == ""
    assert without_echo("ping", "ping") == "ping"
