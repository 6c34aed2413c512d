"""Rows of several records: left out only if each of their records is."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from prefine.data.audit.drops import Drops, Why
from prefine.row_rules import RowRules
from tests.data.audit.writing import audited, dropped_lines, found, text

PLACES = [("f", 1), ("f", 2), ("f", 2), ("f", 2), ("f", 4)]
"""Of five records; row 3 gives none."""


def drops_of() -> Drops:
    drops = Drops()
    for place in PLACES:
        drops.read(place, {"prompt": "q"})
    return drops


def test_a_record_that_is_left_out_for_two_reasons_counts_once() -> None:
    drops = drops_of()
    for number, why in ((1, Why.DUPLICATE), (2, Why.LEAK), (1, Why.CONTRADICTION)):
        drops.drop(number, ("f", 2), why)
    assert drops.rows() == {}
    drops.drop(3, ("f", 2), Why.LEAK)
    assert {place: row.why for place, row in drops.rows().items()} == {("f", 2): Why.DUPLICATE}


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(Why))))
def test_a_row_is_left_out_if_all_of_its_records_are(dropped: list[tuple[int, Why]]) -> None:
    drops = drops_of()
    for number, why in dropped:
        drops.drop(number, PLACES[number], why)
    kept = {PLACES[number] for number in range(5) if number not in {each for each, _ in dropped}}
    assert set(drops.rows()) == set(PLACES) - kept


def test_a_row_without_a_record_is_left_out_and_one_with_a_record_is_not() -> None:
    drops = Drops()
    drops.drop_row(("f", 1), Why.EQUAL_ANSWERS)
    drops.read(("f", 2), {})
    drops.drop_row(("f", 2), Why.EQUAL_ANSWERS)
    drops.drop_row(("f", 3), Why.EQUAL_ANSWERS)
    drops.read(("f", 3), {})
    assert set(drops.rows()) == {("f", 1)}


def test_a_row_stays_for_its_new_record(tmp_path: Path) -> None:
    """Two of the third row's three pairs nearly repeat earlier ones and contradict later ones; the last pair is new."""
    first, second, third = text(1), text(2), text(3)
    rows = [
        {"prompt": "q", "answers": [f"{first} indeed", f"{second} indeed"]},
        {"prompt": "q", "answers": [f"{first} indeed", f"{third} indeed"]},
        {"prompt": "q", "answers": [first, second, third]},
        {"prompt": "q", "answers": [second, first]},
        {"prompt": "q", "answers": [third, first]},
    ]
    audit = audited(tmp_path, rows, rules=RowRules(pairs="all"), contradictions="drop", near=True)
    assert audit.records == 7 and found(audit, "near_duplicates").count == 2
    assert set(dropped_lines(audit)) == {4, 5}
