"""What differs between two texts."""

from __future__ import annotations

import time
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from prefine.annotation.page.differences import Part, differences

TEXTS = st.lists(st.sampled_from(["Lyon", " ", "\n", "lies", ",", "é", "\u0000", "in", "  ", "<b>"]), max_size=30).map(
    "".join
)


def joined(parts: list[Part]) -> str:
    return "".join(text for text, _ in parts)


def test_changed_words_are_marked_and_joined_over_a_space() -> None:
    assert differences("It is about 300 km away.", "It is some 470 km away.") == (
        [("It is ", False), ("about 300", True), (" km away.", False)],
        [("It is ", False), ("some 470", True), (" km away.", False)],
    )
    assert differences("same", "same") == ([("same", False)], [("same", False)])
    assert differences("", "new") == ([], [("new", True)])


def test_long_texts_are_compared_by_lines_and_endless_ones_not_at_all() -> None:
    lines = [f"line {number} of the text\n" for number in range(1_000)]
    changed = [*lines]
    changed[500] = "another line\n"
    left, right = differences("".join(lines), "".join(changed))
    assert [text for text, differs in left if differs] == [lines[500]]
    assert [text for text, differs in right if differs] == ["another line\n"]
    endless = "x\n" * 5_000
    assert differences(endless, endless + "y") == ([(endless, True)], [(endless + "y", True)])


def test_repetitive_texts_take_no_longer_than_others() -> None:
    """difflib takes 17 s of processor time for these."""
    left, right = (" ".join("a" if n % 2 else f"{side}{n}" for n in range(1_000)) for side in "xy")
    began = time.process_time()
    parts = differences(left, right)
    assert time.process_time() - began < 3
    assert [joined(each) for each in parts] == [left, right]
    assert sum(text.count("a") for text, differs in parts[0] if not differs) == 500


@given(TEXTS, TEXTS)
def test_parts_joined_are_the_texts_and_alternate(first: str, second: str) -> None:
    for text, parts in zip((first, second), differences(first, second), strict=True):
        assert joined(parts) == text
        assert all(one[1] != other[1] for one, other in pairwise(parts))
    left, right = ([text for text, differs in parts if not differs] for parts in differences(first, first))
    assert "".join(left) == "".join(right) == first
