"""Figures of both models, prompt by prompt, to metrics and regression groups with intervals, tests and sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prefine.comparisons.estimates import estimate, estimate_of_change
from prefine.comparisons.findings import with_finding, with_group_finding, with_rate_finding
from prefine.comparisons.result import Direction, Metric, RegressionGroup, WinRate
from prefine.comparisons.sentences import capital
from prefine.significance import Change, change_of_mean, change_of_share, holm

_MOST_EXAMPLES = 5


def paired_metric(
    name: str,
    title: str,
    unit: str,
    group: str,
    better: Direction,
    candidate: Sequence[float | None],
    baseline: Sequence[float | None],
) -> Metric:
    """A metric from a value for each prompt of each model; None and non-finite values are missing.

    A share (unit "share", values 0 and 1) has Wilson's intervals and an exact test of the prompts that differ; other
    values have intervals of their mean.

    Args:
        candidate, baseline: prompt by prompt, in the same order.
    """
    pairs = [(now, was) for now, was in zip(candidate, baseline, strict=True) if _is_known(now) and _is_known(was)]
    now, was = [float(pair[0] or 0) for pair in pairs], [float(pair[1] or 0) for pair in pairs]
    is_share = unit == "share" and {*now, *was} <= {0.0, 1.0}
    found = _share_change(now, was) if is_share else change_of_mean(now, was)
    if found is None:
        return _without_pairs(name, title, unit, group, better, candidate, baseline)
    metric = Metric(
        name=name,
        title=title,
        unit=unit,
        group=group,
        better=better,
        candidate=estimate(now, is_share),
        baseline=estimate(was, is_share),
        change=estimate_of_change(found),
        p=found.p,
        finding="no difference shown",
        sentence="",
        more_prompts=found.more_prompts,
    )
    return with_finding(metric)


def regression_group(
    category: str,
    title: str,
    passed_candidate: Sequence[bool],
    passed_baseline: Sequence[bool],
    ids: Sequence[str],
) -> RegressionGroup:
    """One category of the regression set.

    Args:
        passed_candidate, passed_baseline: item by item, at least one. ids: of the items.
    """
    lost = [each for each, now, was in zip(ids, passed_candidate, passed_baseline, strict=True) if was and not now]
    gained = sum(now and not was for now, was in zip(passed_candidate, passed_baseline, strict=True))
    found = change_of_share(gained, len(lost), len(ids))
    now, was = (estimate([float(each) for each in passed], True) for passed in (passed_candidate, passed_baseline))
    if found is None or now is None or was is None:
        raise ValueError(f"{category} has no items")
    group = RegressionGroup(
        category=category,
        title=title,
        candidate=now,
        baseline=was,
        change=estimate_of_change(found),
        lost=len(lost),
        gained=gained,
        p=found.p,
        finding="no difference shown",
        sentence="",
        examples=lost[:_MOST_EXAMPLES],
    )
    return with_group_finding(group)


def corrected(
    metrics: Sequence[Metric],
    win_rates: Sequence[WinRate],
    regression: Sequence[RegressionGroup],
    decided_by: str = "",
) -> tuple[list[Metric], list[WinRate], list[RegressionGroup]]:
    """All of them with p corrected for their number (Holm), and with the findings and sentences that follow.

    Metrics without a better direction decide nothing: they do not count and stay as they are. Nor does the one that
    was chosen beforehand to decide.

    Args:
        decided_by: the name of that metric, or of that win rate's judge.
    """
    ps = [
        *(metric.p if metric.better != "neither" and metric.name != decided_by else None for metric in metrics),
        *(rate.p if rate.judge != decided_by else None for rate in win_rates),
        *(group.p for group in regression),
    ]
    adjusted = iter(holm(ps))
    return (
        [with_finding(metric, next(adjusted)) for metric in metrics],
        [with_rate_finding(rate, next(adjusted)) for rate in win_rates],
        [with_group_finding(group, next(adjusted)) for group in regression],
    )


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _share_change(now: Sequence[float], was: Sequence[float]) -> Change | None:
    up = sum(after > before for after, before in zip(now, was, strict=True))
    down = sum(after < before for after, before in zip(now, was, strict=True))
    return change_of_share(up, down, len(now))


def _without_pairs(
    name: str,
    title: str,
    unit: str,
    group: str,
    better: Direction,
    candidate: Sequence[float | None],
    baseline: Sequence[float | None],
) -> Metric:
    """A metric that no prompt has for both models; with the values of one model, if it has any."""
    sides = {}
    for side, values in (("candidate", candidate), ("baseline", baseline)):
        known = [float(value) for value in values if value is not None and math.isfinite(value)]
        sides[side] = estimate(known, unit == "share" and set(known) <= {0.0, 1.0})
    missing = [side for side, found in sides.items() if found is None]
    why = "no prompt has a value for both models"
    if missing:
        why = "neither model has a value" if len(missing) == 2 else f"the {missing[0]} has no value"
    return Metric(
        name=name,
        title=title,
        unit=unit,
        group=group,
        better=better,
        candidate=sides["candidate"],
        baseline=sides["baseline"],
        finding="not computed",
        sentence=f"{capital(title)}: not compared: {why}.",
        why_not=why,
    )
