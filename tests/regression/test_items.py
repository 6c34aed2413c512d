"""Each item's check judges its reference answers right, and no item passes what is no answer."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

import prefine
from prefine.regression.items import TITLES, items

ITEMS = items()
NO_ANSWERS = {
    "nothing": "",
    "white space": " \n\t",
    "zero width": "\u200b\u200b",
    "undecoded": "\ufffd\ufffd",
    "one syllable": "ha" * 200,
    "one word": "the " * 100,
    "one number": "42 " * 60,
    "one sentence": "Paris is the capital of France. " * 12,
    "one refusal": "I'm sorry, but I can't help with that. " * 12,
    "one list line": "- Oak\n" * 60,
    "one object": '{"a": 1}\n' * 60,
    "one character": "天" * 100,
    "marks": "!" * 200,
}


@pytest.mark.parametrize("category", TITLES)
def test_reference_answers(category: str) -> None:
    found = [item for item in ITEMS if item.category == category]
    assert [(item.id, answer) for item in found for answer in item.passes if not item.check(answer)] == []
    assert [(item.id, answer) for item in found for answer in item.fails if item.check(answer)] == []


@pytest.mark.parametrize("answer", NO_ANSWERS.values(), ids=NO_ANSWERS.keys())
def test_no_answer_passes_nothing(answer: str) -> None:
    assert [item.id for item in ITEMS if item.check(answer)] == []


def test_a_right_answer_that_repeats_without_end_fails() -> None:
    """Also where the first copy alone passes."""
    passed = [item.id for item in ITEMS for answer in item.passes if item.check(f"{answer}\n" * 40)]
    assert passed == []


def test_an_echo_of_the_question_fails() -> None:
    assert [item.id for item in ITEMS if item.check(item.prompt[-1]["content"])] == []


def test_no_answer_passes_another_category_but_by_its_form() -> None:
    """One sensible English text passes few items: a check that always holds would show here."""
    text = "A lamp is a useful thing in a dark room, and most people own several of them."
    passed = Counter(item.category for item in ITEMS if item.check(text))
    assert passed.keys() <= {"instructions"}
    assert passed.total() < 15


def test_the_set() -> None:
    assert 200 <= len(ITEMS) <= 240
    assert len({item.id for item in ITEMS}) == len(ITEMS)
    assert [*dict.fromkeys(item.category for item in ITEMS)] == list(TITLES)
    assert min(Counter(item.category for item in ITEMS).values()) >= 18
    prompts = Counter(tuple(turn["content"].casefold() for turn in item.prompt) for item in ITEMS)
    assert max(prompts.values()) == 1
    for item in ITEMS:
        roles = [turn["role"] for turn in item.prompt]
        assert roles == ["user" if i % 2 == 0 else "assistant" for i in range(len(roles))]
        assert roles[-1] == "user"
        assert item.title == TITLES[item.category]
        assert (len(roles) > 1) == (item.category == "multi_turn")


def test_languages_are_many() -> None:
    codes = {rule.language for item in ITEMS for rule in item.rules if rule.rule == "language"}
    assert len(codes) >= 15


def test_the_readme_has_the_numbers_of_items() -> None:
    readme = (Path(prefine.__file__).parent / "regression" / "set" / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", readme, re.MULTILINE)
    assert {name: int(count) for name, count in rows} == Counter(item.category for item in ITEMS)
    assert f"\n{len(ITEMS)} short prompts" in readme
