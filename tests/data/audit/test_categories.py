"""Columns that name categories: what is counted, what is dominant or rare, what is left out and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefine.data.audit.findings import Severity
from tests.data.audit.writing import audited, found, pair


def of(tmp_path: Path, *values: Any, name: str = "category") -> Any:
    """The finding on one column with these values."""
    return found(audited(tmp_path, [pair(n, **{name: value}) for n, value in enumerate(values)]), "categories")


def test_a_dominant_category_and_rare_ones(tmp_path: Path) -> None:
    finding = of(tmp_path, *("billing" if n < 90 else f"rare {n}" for n in range(93)))
    assert (finding.count, finding.severity) == (3, Severity.MEDIUM)
    assert finding.figures["columns"]["category"]["billing"] == 90
    assert [each.places for each in finding.examples] == [[f"{tmp_path}/rows.jsonl:{line}"] for line in (93, 92, 91)]
    assert finding.examples[0].note == "category: rare 92 (1 row)"


def test_one_value_is_as_unbalanced_as_can_be(tmp_path: Path) -> None:
    finding = of(tmp_path, *["billing"] * 20)
    assert finding.severity is Severity.MEDIUM
    assert "All 20 rows with a value have this one." in finding.says


@pytest.mark.parametrize(
    ("values", "counts"),
    [
        ([1, 2, 1, 3.0], {"1": 2, "2": 1, "3": 1}),
        ([True, False, True, True], {"true": 3, "false": 1}),
        ([["a", "b"], ["a"], ["a", "a"], []], {"a": 3, "b": 1}),
        (["x", None, "", "x"], {"x": 2}),
    ],
    ids=["numbers", "booleans", "lists", "empty"],
)
def test_what_is_counted(tmp_path: Path, values: list[Any], counts: dict[str, int]) -> None:
    finding = of(tmp_path, *values, name="difficulty")
    assert finding.figures["columns"] == {"difficulty": counts}


def test_items_of_lists_are_shares_of_rows(tmp_path: Path) -> None:
    """a is in every row, b in half of them: 100 % and 50 %, not 67 % and 33 %."""
    finding = of(tmp_path, *[["a", "b"], ["a"]] * 10, name="tags")
    assert finding.figures["rows"] == {"tags": 20}
    assert "a 100\u202f% and b 50\u202f%" in finding.says and finding.severity is Severity.MEDIUM


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([f"value {n}" for n in range(101)], "it has more than 100 values"),
        ([0.25, 0.5], "it holds numbers with fractions"),
        ([{"a": 1}, {"b": 2}], "it holds objects or lists of lists"),
        (["x" * 61, "y" * 61], "it holds texts of more than 60 characters"),
        ([None, None], "category is empty"),
    ],
)
def test_a_column_that_is_left_out_is_named(tmp_path: Path, values: list[Any], why: str) -> None:
    finding = of(tmp_path, *values)
    assert finding.severity is Severity.UNCHECKED
    assert finding.says.startswith("category ") and why in finding.says


def test_a_few_odd_values_do_not_leave_out_a_column(tmp_path: Path) -> None:
    finding = of(tmp_path, *["a", "b"] * 10, "x" * 61)
    assert finding.figures["columns"] == {"category": {"a": 10, "b": 10}}
    assert "category is left out in 1 row: it holds texts of more than 60 characters." in finding.says


def test_without_such_a_column(tmp_path: Path) -> None:
    assert found(audited(tmp_path, [pair(1)]), "categories").says.startswith("No column has a name of categories")
