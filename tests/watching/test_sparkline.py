"""Plots of text, by hand."""

from __future__ import annotations

import math

from prefine.watching.sparkline import sparkline


def test_each_value_is_a_column_from_the_lowest_to_the_highest() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == ["▁▂▃▄▅▆▇█"]
    assert sparkline([0, 7], 8, ascii_only=True) == [".@"]


def test_more_values_than_columns_are_averaged() -> None:
    assert sparkline([0, 0, 7, 7], 2) == ["▁█"]


def test_two_lines_have_sixteen_levels() -> None:
    assert sparkline([0, 7, 8, 15], 4, height=2) == ["  ▁█", "▁███"]


def test_gaps_and_constants() -> None:
    assert sparkline([0, math.nan, 7], 3) == ["▁ █"]
    assert sparkline([2, 2], 3) == ["▄▄"]
    assert sparkline([math.nan], 3) == [" "]
    assert sparkline([], 3) == [""]
