"""Curves of several runs in one chart, and the differences of their recipes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from prefine.report import overlay
from prefine.report.overlay import NamedRun, overlaid, recipe_rows
from prefine.report.plots import Line
from tests.report.test_page import EMPTY


def named(name: str, stage: str, **rows: Any) -> NamedRun:
    return NamedRun(name, dataclasses.replace(EMPTY, manifest={"stage": stage}, **rows), "run1")


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Line]]:
    """The lines of each drawn chart, by its name."""
    drawn: dict[str, list[Line]] = {}

    def draw(name: str, label: str, given: list[Line], **options: Any) -> str:
        drawn[name] = given
        return ""

    monkeypatch.setattr(overlay, "line_chart", draw)
    return drawn


def test_held_out_figures_come_before_those_of_training(lines: dict[str, list[Line]]) -> None:
    heldout = [{"step": 0, "score": 1.0}, {"step": 4, "score": 2.0}]
    train = [{"step": step, "score": 9.0} for step in range(1, 5)]
    event = [{"at_step": 3, "action": "warn"}]
    first = named("a", "ppo", train=train, heldout=heldout, guard_events=event)
    (chart,) = overlaid([first, named("b", "ppo", train=train)])
    assert [(list(line.xs), list(line.ys), line.events) for line in lines["curve-score"]] == [
        ([0, 4], [1, 2], [3.0]),
        ([1, 2, 3, 4], [9, 9, 9, 9], []),
    ]
    assert [key.label for key in chart.keys] == ["a: 1.000 → 2.000", "b: 9.000"]
    assert chart.subtitle.startswith("held-out or training;") and chart.note == "Dotted: a guard acted."


def test_losses_of_two_stages_are_in_two_charts(lines: dict[str, list[Line]]) -> None:
    rows = [{"step": 1, "loss": 1.0}]
    charts = overlaid([named("a", "sft", train=rows), named("b", "dpo", train=rows), named("c", "sft", train=rows)])
    assert [(chart.title, len(found)) for chart, found in zip(charts, lines.values(), strict=True)] == [
        ("Loss, sft", 2),
        ("Loss, dpo", 1),
    ]


def test_settings_that_differ() -> None:
    rows = recipe_rows([{"a": {"b": 1, "c": "x"}, "d": None}, {"a": {"b": 1.0, "c": "x"}, "e": [1]}])
    assert [(row.name, row.values, row.differs) for row in rows] == [
        ("a.b", ["1", "1.0"], True),
        ("a.c", ["x", "x"], False),
        ("d", ["null", "not set"], True),
        ("e", ["not set", "[1]"], True),
    ]
