"""What a comparison is made of, as it is gathered."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from prefine.comparisons.result import AnswerRow, Metric, RegressionGroup, WinRate

ROLES = ("candidate", "baseline")

Rows = list[dict[str, Any]]
"""Of a part of the comparison's folder."""


@dataclass
class Gathered:
    """What a comparison is made of.

    Attributes:
        rows: prompts with both answers. places: the number of each row's prompt.
        left_out: prompts without both answers, by reason.
        regression_rows: the answers to the regression set.
        metrics: that are not of answers: of pairs, of demonstrations.
        same_tokens: whether both models have one vocabulary, so that lengths in tokens compare.
        decided_by: the metric or the judge that decides; "" if nothing can.
        not_computed: what could not be computed, and why.
    """

    rows: list[AnswerRow] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    metrics: list[Metric] = field(default_factory=list)
    win_rates: list[WinRate] = field(default_factory=list)
    regression: list[RegressionGroup] = field(default_factory=list)
    regression_rows: list[AnswerRow] = field(default_factory=list)
    benchmarks: list[Metric] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    not_computed: dict[str, str] = field(default_factory=dict)
    same_tokens: bool = True
    decided_by: str = ""
