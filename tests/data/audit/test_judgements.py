"""Duplicates and contradictions, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.audit.writing import audited, dropped_lines, found, pair


def swapped(row: dict[str, str]) -> dict[str, str]:
    return row | {"chosen": row["rejected"], "rejected": row["chosen"]}


def test_a_row_that_repeats_another_is_a_duplicate(tmp_path: Path) -> None:
    audit = audited(tmp_path, [pair(1), pair(2), pair(1), pair(1, id="other")])
    finding = found(audit, "duplicates")
    assert (finding.count, finding.of) == (2, 4)
    assert [example.places for example in finding.examples] == [
        [f"{tmp_path}/rows.jsonl:3", f"{tmp_path}/rows.jsonl:1"],
        [f"{tmp_path}/rows.jsonl:4", f"{tmp_path}/rows.jsonl:1"],
    ]
    assert dropped_lines(audit) == {3: "repeats an earlier row", 4: "repeats an earlier row"}


def test_the_same_judgement_by_two_annotators_is_no_duplicate(tmp_path: Path) -> None:
    audit = audited(tmp_path, [pair(1, annotator=name) for name in ("a", "b", "a")])
    assert found(audit, "duplicates").count == 1
    assert dropped_lines(audit) == {3: "repeats an earlier row"}


@pytest.mark.parametrize(
    ("rule", "lines"), [("keep", set()), ("drop", {1, 2, 3, 4, 5}), ("majority", {2, 4, 5})], ids=str
)
def test_contradictions_are_left_out_as_asked(tmp_path: Path, rule: str, lines: set[int]) -> None:
    # 2 against 1 on the first item, 1 against 1 on the second.
    rows = [
        pair(1, annotator="a"),
        swapped(pair(1, annotator="b")),
        pair(1, annotator="c"),
        pair(2),
        swapped(pair(2)),
        pair(3),
    ]
    audit = audited(tmp_path, rows, contradictions=rule)
    finding = found(audit, "contradictions")
    assert (finding.count, finding.figures["items"]) == (5, 2)
    assert set(dropped_lines(audit)) == lines


def test_votes_up_and_down_on_one_answer_contradict_each_other(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": f"a{n}", "label": label} for n, label in ((1, True), (1, False), (2, True))]
    assert found(audited(tmp_path, rows), "contradictions").count == 2


def test_a_tie_contradicts_nothing(tmp_path: Path) -> None:
    tie = {"prompt": "q", "response_1": "a", "response_2": "b", "preferred": 0}
    audit = audited(tmp_path, [tie, tie | {"preferred": 1}])
    assert found(audit, "contradictions").count == 0


def test_a_row_of_several_records_stays_if_one_of_them_is_new(tmp_path: Path) -> None:
    from prefine.row_rules import RowRules

    ranked = {"prompt": "q", "answers": ["best", "middle", "worst"]}
    again = {"prompt": "q", "answers": ["best", "middle", "new"]}
    audit = audited(tmp_path, [ranked, again, ranked], rules=RowRules(pairs="all"))
    assert found(audit, "duplicates").count == 1 + 3
    assert set(dropped_lines(audit)) == {3}
