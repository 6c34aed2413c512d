"""Figures of both models, prompt by prompt, to metrics and regression groups with intervals, tests and sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from prefine.comparisons.estimates import estimate, estimate_of_change, estimate_of_median
from prefine.comparisons.findings import with_finding, with_group_finding, with_rate_finding
from prefine.comparisons.result import Direction, Estimate, Metric, RegressionGroup, WinRate
from prefine.comparisons.sentences import capital
from prefine.significance import (
    Change,
    change_of_mean,
    change_of_ratio,
    change_of_share,
    holm,
    median_of_changes,
)

DEGENERATE = "degenerate"
"""The metric that is not corrected for the number of the others."""

ALL_CATEGORIES = "all"
"""The category of the group that has the items of all of them."""


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
    about: dict[str, Any] = {"name": name, "title": title, "unit": unit, "group": group, "better": better}
    now, was = _both_known(candidate, baseline)
    is_share = unit == "share" and {*now, *was} <= {0.0, 1.0}
    found = _share_change(now, was) if is_share else change_of_mean(now, was)
    if found is None:
        return _without_pairs(about, candidate, baseline)
    return _metric(about, estimate(now, is_share), estimate(was, is_share), found)


def paired_median(
    name: str,
    title: str,
    unit: str,
    group: str,
    better: Direction,
    candidate: Sequence[float | None],
    baseline: Sequence[float | None],
) -> Metric:
    """As `paired_metric`, of medians.

    The change is the median of the prompts' changes, how far the typical prompt moved. That is not the difference of
    the two models' medians.
    """
    about: dict[str, Any] = {"name": name, "title": title, "unit": unit, "group": group, "better": better}
    now, was = _both_known(candidate, baseline)
    found = median_of_changes(now, was)
    if found is None:
        return _without_pairs(about, candidate, baseline)
    return _metric(about, estimate_of_median(now), estimate_of_median(was), found)


def paired_ratio(
    name: str,
    title: str,
    unit: str,
    group: str,
    better: Direction,
    candidate: Sequence[float],
    baseline: Sequence[float],
    sizes: Sequence[float],
) -> Metric:
    """A ratio of sums, such as the loss per token over answers of unequal lengths; the ratios have no intervals.

    Args:
        candidate, baseline: a sum for each answer: its loss in nats. sizes: of the answers: tokens.
    """
    about: dict[str, Any] = {"name": name, "title": title, "unit": unit, "group": group, "better": better}
    found = change_of_ratio(candidate, baseline, sizes)
    if found is None:
        return _without_pairs(about, [], [])
    now, was = (Estimate(value=math.fsum(sums) / math.fsum(sizes), count=len(sizes)) for sums in (candidate, baseline))
    return _metric(about, now, was, found)


def regression_group(
    category: str,
    title: str,
    passed_candidate: Sequence[bool],
    passed_baseline: Sequence[bool],
    ids: Sequence[str],
    *,
    missing: int = 0,
) -> RegressionGroup:
    """One category of the regression set.

    Args:
        passed_candidate, passed_baseline: item by item, at least one. ids: of the items.
        missing: further items that one of the models could not answer.
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
        missing=missing,
        p=found.p,
        finding="no difference shown",
        sentence="",
        examples=lost,
    )
    return with_group_finding(group)


def corrected(
    metrics: Sequence[Metric],
    win_rates: Sequence[WinRate],
    regression: Sequence[RegressionGroup],
    decided_by: str = "",
) -> tuple[list[Metric], list[WinRate], list[RegressionGroup]]:
    """All of them with p corrected for their number (Holm), and with the findings and sentences that follow.

    Metrics and win rates are one family; the categories of the regression set are another: they have few items, and
    would never be named if they were corrected for all metrics. The regression set as a whole is one test, which is
    not corrected: a loss that is spread over many categories is seen there only.

    The share of degenerate answers is a test of its own for the same reason: it is the sign of a model that broke, and
    six blank answers of sixty would be hidden by the number of the other metrics.

    Metrics without a better direction decide nothing: they do not count and stay as they are. Nor does the one that
    was chosen beforehand to decide.

    Args:
        decided_by: the name of that metric, or of that win rate's judge.
    """
    alone = (decided_by, DEGENERATE)
    ps = [
        *(metric.p if metric.better != "neither" and metric.name not in alone else None for metric in metrics),
        *(rate.p if rate.judge != decided_by else None for rate in win_rates),
    ]
    adjusted = iter(holm(ps))
    of_groups = iter(holm([None if group.category == ALL_CATEGORIES else group.p for group in regression]))
    return (
        [with_finding(metric, next(adjusted)) for metric in metrics],
        [with_rate_finding(rate, next(adjusted)) for rate in win_rates],
        [with_group_finding(group, next(of_groups)) for group in regression],
    )


def corrected_benchmarks(benchmarks: Sequence[Metric]) -> list[Metric]:
    """Benchmarks with p corrected for their number (Holm): a family of their own, as a group of tasks has many."""
    adjusted = holm([metric.p if metric.better != "neither" else None for metric in benchmarks])
    return [with_finding(metric, p) for metric, p in zip(benchmarks, adjusted, strict=True)]


def _both_known(candidate: Sequence[float | None], baseline: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """The values of the prompts that have one for both models."""
    pairs = [
        (now, was)
        for now, was in zip(candidate, baseline, strict=True)
        if now is not None and was is not None and math.isfinite(now) and math.isfinite(was)
    ]
    return [float(now) for now, _ in pairs], [float(was) for _, was in pairs]


def _share_change(now: Sequence[float], was: Sequence[float]) -> Change | None:
    up = sum(after > before for after, before in zip(now, was, strict=True))
    down = sum(after < before for after, before in zip(now, was, strict=True))
    return change_of_share(up, down, len(now))


def _metric(about: dict[str, Any], candidate: Estimate | None, baseline: Estimate | None, found: Change) -> Metric:
    return with_finding(
        Metric(
            candidate=candidate,
            baseline=baseline,
            change=estimate_of_change(found),
            p=found.p,
            finding="no difference shown",
            sentence="",
            more_prompts=found.more_prompts,
            **about,
        )
    )


def _without_pairs(
    about: dict[str, Any], candidate: Sequence[float | None], baseline: Sequence[float | None]
) -> Metric:
    """A metric that no prompt has for both models; with the values of one model, if it has any."""
    sides = {}
    for side, values in (("candidate", candidate), ("baseline", baseline)):
        known = [float(value) for value in values if value is not None and math.isfinite(value)]
        sides[side] = estimate(known, about["unit"] == "share" and set(known) <= {0.0, 1.0})
    missing = [side for side, found in sides.items() if found is None]
    why = "no prompt has a value for both models"
    if missing:
        why = "neither model has a value" if len(missing) == 2 else f"the {missing[0]} has no value"
    return Metric(
        candidate=sides["candidate"],
        baseline=sides["baseline"],
        finding="not computed",
        sentence=f"{capital(about['title'])}: not compared: {why}.",
        why_not=why,
        **about,
    )
