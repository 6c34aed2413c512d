"""All paired changes of a comparison as rows of one chart, each with its interval on a scale around no change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prefine.comparisons.result import Comparison, Direction, Estimate, Finding, Metric, RegressionGroup, WinRate
from prefine.report.comparison.figures import Mark, mark_of, p_text, shown_change, shown_value

_GROUPS = {
    "reward": "Reward",
    "divergence": "Distance from the reference",
    "form": "Form of the answers",
    "diversity": "Diversity",
    "preference": "Held-out preferences",
    "reference": "Against reference answers",
}
_MARGIN = 1.08


@dataclass(frozen=True)
class ForestRow:
    """One paired change.

    Attributes:
        low, value, high: places of the interval's ends and of the change, in percent of the scale's width; "no change"
            is at 50, and the candidate is better to the right. low and high are None without an interval.
        describes: whether no direction is better, so that right only means higher.
    """

    title: str
    baseline: str
    candidate: str
    change: str
    range: str
    p: str
    count: str
    mark: Mark
    sentence: str
    describes: bool
    low: float | None
    value: float | None
    high: float | None


@dataclass(frozen=True)
class ForestGroup:
    """Rows with a heading."""

    title: str
    rows: list[ForestRow]


@dataclass(frozen=True)
class _Change:
    """A paired change from any part of a comparison."""

    title: str
    unit: str
    better: Direction
    candidate: Estimate | None
    baseline: Estimate | None
    change: Estimate | None
    p: float | None
    finding: Finding
    sentence: str


def forest(comparison: Comparison) -> list[ForestGroup]:
    """The computed changes: win rates, metrics by group, the regression set, benchmarks."""
    parts: list[tuple[str, list[_Change]]] = [
        ("Win rate", [_of_win_rate(each) for each in comparison.win_rates if each.rate is not None]),
        *metric_groups(comparison.metrics),
        ("Regression set", [_of_regression(each) for each in comparison.regression]),
        ("Benchmarks", [_of_metric(each) for each in comparison.benchmarks if each.change is not None]),
    ]
    # Shares have one scale, so that they can be compared with each other.
    shares = _reach(each.change for _, rows in parts for each in rows if each.unit == "share")
    return [ForestGroup(title, [_row(each, shares) for each in rows]) for title, rows in parts if rows]


def metric_groups(metrics: Sequence[Metric]) -> list[tuple[str, list[_Change]]]:
    """The metrics with a change, by group, known groups first."""
    order = [*_GROUPS, *dict.fromkeys(metric.group for metric in metrics if metric.group not in _GROUPS)]
    return [
        (
            _GROUPS.get(group, group.capitalize()),
            [_of_metric(each) for each in metrics if each.group == group and each.change is not None],
        )
        for group in order
    ]


def _of_metric(metric: Metric) -> _Change:
    p = metric.p if metric.p_adjusted is None else metric.p_adjusted
    return _Change(
        metric.title,
        metric.unit,
        metric.better,
        metric.candidate,
        metric.baseline,
        metric.change,
        p,
        metric.finding,
        metric.sentence,
    )


def _of_win_rate(found: WinRate) -> _Change:
    rate = found.rate
    change = None if rate is None else _shifted(rate, -0.5)
    p = found.p if found.p_adjusted is None else found.p_adjusted
    title = f"{found.judge}: above 50\u202f%"
    return _Change(title, "share", "higher", rate, None, change, p, found.finding, found.sentence)


def _shifted(rate: Estimate, by: float) -> Estimate:
    low, high = (None if end is None else end + by for end in (rate.low, rate.high))
    return Estimate(value=rate.value + by, low=low, high=high, count=rate.count)


def _of_regression(group: RegressionGroup) -> _Change:
    p = group.p if group.p_adjusted is None else group.p_adjusted
    return _Change(
        group.title,
        "share",
        "higher",
        group.candidate,
        group.baseline,
        group.change,
        p,
        group.finding,
        group.sentence,
    )


def _reach(changes: Iterable[Estimate | None]) -> float:
    """The largest distance from 0 of values and ends."""
    ends = [
        abs(end)
        for change in changes
        if change is not None
        for end in (change.value, change.low, change.high)
        if end is not None
    ]
    return max(ends, default=0.0)


def _row(each: _Change, shares: float) -> ForestRow:
    change = each.change
    reach = (shares if each.unit == "share" else _reach([change])) * _MARGIN or 1.0
    sign = -1.0 if each.better == "lower" else 1.0

    def place(value: float | None) -> float | None:
        return None if value is None else round(50 + 50 * sign * value / reach, 3)

    size, ends_text = shown_change(change, each.unit)
    ends = [place(change.low if change else None), place(change.high if change else None)]
    low, high = ends if sign > 0 else reversed(ends)
    return ForestRow(
        title=each.title,
        baseline=shown_value(each.baseline, each.unit),
        candidate=shown_value(each.candidate, each.unit),
        change=size,
        range=ends_text,
        p=p_text(each.p),
        count="" if change is None else f"{change.count:,}",
        mark=mark_of(each.finding, change),
        sentence=each.sentence,
        describes=each.better == "neither",
        low=low,
        value=place(change.value if change else None),
        high=high,
    )
