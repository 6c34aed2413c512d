"""Comparisons whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence

from prefine.comparisons.result import Comparison, Metric, RegressionGroup, Side, WinRate
from prefine.comparisons.statistics import corrected
from prefine.comparisons.verdict import verdict


def comparison(
    decided_by: str,
    metrics: Sequence[Metric] = (),
    win_rates: Sequence[WinRate] = (),
    regression: Sequence[RegressionGroup] = (),
) -> Comparison:
    """A comparison with corrected findings and a verdict."""
    found, rates, groups = corrected(metrics, win_rates, regression, decided_by)
    return Comparison(
        prefine="0",
        made_at="2026-11-26T12:00:00+00:00",
        candidate=Side(name="new", kind="run"),
        baseline=Side(name="old", kind="run"),
        prompts={"asked": 100, "count": 100},
        sampling={},
        verdict=verdict(decided_by, found, rates, groups),
        metrics=found,
        win_rates=rates,
        regression=groups,
    )
