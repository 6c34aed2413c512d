"""Columns that look like answers and are not read, and rows of other kinds than most."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefine.data.audit.findings import Severity
from prefine.data.audit.unread import naming, row_kinds
from prefine.row_rules import AS_WRITTEN, RowRules
from prefine.text_form import AS_FOUND
from tests.data.audit.writing import audited, found, pair, written

VOTE = {"prompt": "q", "completion": "a", "label": True}


def test_answers_in_a_column_of_another_name(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "response": f"a{n}"} for n in range(40)]
    audit = audited(tmp_path, rows)
    finding = found(audit, "unread_columns")
    assert (audit.kind, finding.severity, finding.count, finding.of) == ("prompts", Severity.HIGH, 40, 40)
    assert "A column that looks like answers is not read: response (40 rows)." in finding.says
    assert "--column completion=response" in finding.remedy
    named = audited(tmp_path, rows, rules=RowRules({"completion": "response"}))
    assert (named.kind, found(named, "unread_columns").severity) == ("demonstrations", Severity.NONE)


@pytest.mark.parametrize(
    ("column", "count"),
    [("my-answer", 3), ("Model Response", 3), (" OUTPUT ", 0), ("Response ID", 0), ("answer-model", 0)],
)
def test_names_of_answers_may_have_spaces_and_hyphens(tmp_path: Path, column: str, count: int) -> None:
    """` OUTPUT ` is read, as `output`."""
    rows = [{"instruction" if column == " OUTPUT " else "prompt": f"q{n}", column: f"a{n}"} for n in range(3)]
    assert found(audited(tmp_path, rows), "unread_columns").count == count


def test_a_further_answer_beside_those_that_are_read_is_less_serious(tmp_path: Path) -> None:
    finding = found(audited(tmp_path, [pair(n, response_3="more") for n in range(20)]), "unread_columns")
    assert (finding.severity, finding.count) == (Severity.LOW, 20)
    assert finding.remedy.startswith("Nothing needs to be done if they are not wanted. Name them: --column NAME=")
    few = found(
        audited(tmp_path, [pair(n, **({"answer": "x"} if n == 0 else {})) for n in range(20)]), "unread_columns"
    )
    assert (few.severity, few.count) == (Severity.LOW, 1)


def test_of_votes_that_are_not_read_both_sides_are_counted(tmp_path: Path) -> None:
    """Rows with a vote down are quarantined: their answers are not imitated."""
    rows = [{"prompt": f"q{n}", "completion": "a", "thumbs_up": n >= 5} for n in range(20)]
    audit = audited(tmp_path, rows, kind="demonstrations")
    finding = found(audit, "unread_columns")
    assert (finding.severity, audit.records) == (Severity.HIGH, 15)
    assert (finding.figures["votes"], finding.figures["votes_down"]) == ({"thumbs_up": 20}, {"thumbs_up": 5})
    assert "thumbs_up (20 rows). Only answers that were voted up are imitated; 5 rows with a vote down" in finding.says
    twice = found(audited(tmp_path, [row | {"liked": True} for row in rows], kind="demonstrations"), "unread_columns")
    assert twice.figures["votes"] == {"thumbs_up": 20, "liked": 20}


def test_rows_of_other_kinds(tmp_path: Path) -> None:
    rows = [*(pair(n) for n in range(30)), *(VOTE | {"prompt": f"q{n}"} for n in range(20)), '{"x": 1}']
    audit = audited(tmp_path, rows)
    finding = found(audit, "other_kinds")
    assert (finding.count, finding.of, finding.severity) == (20, 51, Severity.HIGH)
    assert "the rows are 30 preferences, 20 votes and 1 unknown. They are read as preferences: votes" in finding.says
    assert found(audited(tmp_path, rows, kind="votes"), "other_kinds").severity is Severity.LOW  # it was asked for
    assert found(audited(tmp_path, [pair(1), '{"x": 1}']), "other_kinds").severity is Severity.NONE


def test_messages_of_a_tree_are_of_one_kind(tmp_path: Path) -> None:
    """Only replies have a rank: a prompt without one is no row of another kind."""
    rows = [
        {"message_id": "1", "parent_id": None, "role": "prompter", "text": "q"},
        {"message_id": "2", "parent_id": "1", "role": "assistant", "text": "good", "rank": 0},
        {"message_id": "3", "parent_id": "1", "role": "assistant", "text": "bad", "rank": 1},
    ]
    audit = audited(tmp_path, rows)
    assert (audit.kind, found(audit, "other_kinds").count) == ("preferences", 0)


def test_kinds_are_counted_of_the_first_rows(tmp_path: Path) -> None:
    name = written(tmp_path / "rows.jsonl", [VOTE, VOTE, pair(1)])
    kinds = row_kinds([name], "votes", 2, split="train", text=AS_FOUND, rules=AS_WRITTEN)
    assert kinds.rows == {"votes": 2}


@pytest.mark.parametrize(
    ("proposed", "says"),
    [
        ({}, "--column NAME=COLUMN, data.columns in a recipe"),
        ({"completion": "My answer"}, "--column completion='My answer', or data.columns: {completion: My answer}"),
        ({"input": "context"}, "--column NAME=COLUMN, data.columns in a recipe"),  # it names no unread column
    ],
)
def test_how_columns_are_named(proposed: dict[str, str], says: str) -> None:
    assert naming({"My answer": 9}, {}, proposed, "prompts").startswith(f"Name them: {says}")
