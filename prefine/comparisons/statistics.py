"""Figures of both models, prompt by prompt, to metrics and regression groups with intervals, tests and sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prefine.comparisons.result import Direction, Estimate, Finding, Metric, RegressionGroup, WinRate
from prefine.comparisons.sentences import capital, change_text, interval_of, p_text, settle_text, value_text
from prefine.formatting import plural
from prefine.intervals import Share, mean
from prefine.significance import Change, change_of_mean, change_of_share, holm, is_shown

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
        change=_change_estimate(found),
        p=found.p,
        finding="no difference shown",
        sentence="",
        more_prompts=found.more_prompts,
    )
    return with_finding(metric)


def estimate(values: Sequence[float], is_share: bool) -> Estimate | None:
    """The mean of one model's values with its interval: Wilson's of a share, Student's of other values."""
    if is_share and values:
        share = Share(math.fsum(values) / len(values), len(values))
        interval = share.interval
        return Estimate(
            value=share.value,
            low=interval.low if interval else None,
            high=interval.high if interval else None,
            count=len(values),
        )
    found = mean(values)
    if found is None:
        return None
    low, high = (found.interval.low, found.interval.high) if found.interval else (None, None)
    return Estimate(value=found.value, low=low, high=high, count=found.count)


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
        change=_change_estimate(found),
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
    from prefine.comparisons.win_rate import with_rate_finding

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


def with_finding(metric: Metric, p_adjusted: float | None = None) -> Metric:
    """A metric with the finding that its change, its test and a corrected p give, and the sentence for it."""
    if metric.change is None:
        return metric
    finding = finding_of(metric.change, metric.p, p_adjusted, metric.better)
    change = change_text(metric.change, metric.unit)
    count = plural(metric.change.count, "prompt")
    text = f"{capital(metric.title)}: {finding}: {change}, {p_text(metric.p, p_adjusted)}, {count}."
    if metric.candidate is not None and metric.baseline is not None:
        now, was = (value_text(each.value, metric.unit) for each in (metric.candidate, metric.baseline))
        text = f"{text[:-1]}; candidate {now}, baseline {was}."
    if finding == "no difference shown" and metric.better != "neither":
        text += settle_text(metric.more_prompts)
    return metric.model_copy(update={"p_adjusted": p_adjusted, "finding": finding, "sentence": text})


def with_group_finding(group: RegressionGroup, p_adjusted: float | None = None) -> RegressionGroup:
    """A group with the finding that its change, its test and a corrected p give, and the sentence for it."""
    finding = finding_of(group.change, group.p, p_adjusted, "higher")
    count = group.change.count
    now, was = (round(side.value * count) for side in (group.candidate, group.baseline))
    text = (
        f"{capital(group.title)}: {finding}: the candidate passed {now} of {count}, the baseline {was}; "
        f"{group.lost} lost, {group.gained} gained, {p_text(group.p, p_adjusted)}."
    )
    return group.model_copy(update={"p_adjusted": p_adjusted, "finding": finding, "sentence": text})


def finding_of(change: Estimate, p: float | None, p_adjusted: float | None, better: Direction) -> Finding:
    """What a change shows: something only if the test, corrected if it is, and the interval agree."""
    if not is_shown(interval_of(change), p if p_adjusted is None else p_adjusted):
        return "no difference shown"
    if better == "neither":
        return "differs"
    return "better" if (change.value > 0) == (better == "higher") else "worse"


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _share_change(now: Sequence[float], was: Sequence[float]) -> Change | None:
    up = sum(after > before for after, before in zip(now, was, strict=True))
    down = sum(after < before for after, before in zip(now, was, strict=True))
    return change_of_share(up, down, len(now))


def _change_estimate(change: Change) -> Estimate:
    low, high = (change.interval.low, change.interval.high) if change.interval else (None, None)
    return Estimate(value=change.value, low=low, high=high, count=change.count)


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
