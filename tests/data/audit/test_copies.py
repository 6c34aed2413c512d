"""Of copies the first one stays that nothing else leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefine.data.audit.copies import Copies
from prefine.data.audit.drops import Drops, Why
from tests.data.audit.test_judgements import swapped
from tests.data.audit.test_near import edited
from tests.data.audit.writing import audited, dropped_lines, pair, written

ONE, OTHER = pair(1), swapped(pair(1))
NEAR, NEARER = edited(ONE), edited(ONE, "elsewhere")
CONTRADICTS = "contradicts another row"
NEARLY, EXACTLY = "nearly repeats an earlier row", "repeats an earlier row"


@pytest.mark.parametrize(
    ("rows", "rule", "lines"),
    [
        # The near copies of what was contradicted: the first one stays.
        ([ONE, OTHER, NEAR, NEARER, pair(2)], "drop", {1: CONTRADICTS, 2: CONTRADICTS, 4: NEARLY}),
        ([ONE, OTHER, NEAR, NEAR], "drop", {1: CONTRADICTS, 2: CONTRADICTS, 4: EXACTLY}),
        # An exact copy is contradicted as its original is.
        ([ONE, OTHER, ONE, NEAR], "drop", {1: CONTRADICTS, 2: CONTRADICTS, 3: CONTRADICTS}),
        ([ONE, OTHER, ONE, NEAR], "majority", {1: CONTRADICTS, 2: CONTRADICTS, 3: CONTRADICTS}),
        ([ONE, OTHER, ONE, NEAR], "keep", {3: EXACTLY, 4: NEARLY}),
        ([ONE, NEAR, NEAR], "keep", {2: NEARLY, 3: NEARLY}),
    ],
)
def test_near_copies_of_contradicted_records(
    tmp_path: Path, rows: list[dict[str, str]], rule: str, lines: dict[int, str]
) -> None:
    assert dropped_lines(audited(tmp_path, rows, contradictions=rule, near=True)) == lines


def test_a_copy_of_a_leak_is_a_leak(tmp_path: Path) -> None:
    held = written(tmp_path / "held.jsonl", [{"prompt": ONE["prompt"]}])
    asked = {**ONE, "prompt": f"{ONE['prompt']} indeed"}
    rows = [ONE, ONE, asked, pair(2), edited(pair(2)) | {"prompt": pair(2)["prompt"]}]
    audit = audited(tmp_path, rows, heldout=[held])
    assert dropped_lines(audit) == dict.fromkeys((1, 2), "its prompt is in the held-out data")
    assert set(dropped_lines(audited(tmp_path, rows, heldout=[held], near=True))) == {1, 2, 3, 5}


def test_without_near_the_near_copies_stay(tmp_path: Path) -> None:
    assert set(dropped_lines(audited(tmp_path, [ONE, NEAR, OTHER, ONE]))) == {4}


@given(st.data())
def test_one_record_of_a_group_stays_unless_all_are_left_out_otherwise(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 12))
    drops = Drops()
    places = [("f", number) for number in range(count)]
    copies = Copies(places, drops)
    exact: dict[int, int] = {}
    near: dict[int, int] = {}
    for number in range(1, count):
        how = data.draw(st.sampled_from(["exact", "near", "new"]))
        firsts = [each for each in range(number) if each not in exact]
        if how == "exact":
            exact[number] = data.draw(st.sampled_from(firsts))
            copies.exact(number, exact[number])
        elif how == "near" and (able := [each for each in firsts if each not in near]):
            near[number] = data.draw(st.sampled_from(able))
            copies.near(number, near[number])
    leaks = data.draw(st.sets(st.sampled_from(range(count))))
    for number in leaks:
        drops.drop(number, places[number], Why.LEAK)
    copies.decide()
    groups: dict[int, set[int]] = {}
    for number in range(count):
        first = exact.get(number, number)
        groups.setdefault(near.get(first, first), set()).add(number)
    for group in groups.values():
        staying = {number for number in group if drops.of(number) is None}
        assert staying == ({min(group - leaks)} if group - leaks else set())
    for number in range(count):
        row = drops.of(number)
        if row is not None and row.other is not None:
            assert drops.of(row.other[1]) is None and row.other[1] < number
