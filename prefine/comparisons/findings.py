"""What the changes of metrics, win rates and regression groups show, and the sentence for it."""

from __future__ import annotations

from prefine.comparisons.estimates import interval_of
from prefine.comparisons.result import Direction, Estimate, Finding, Metric, RegressionGroup, WinRate
from prefine.comparisons.sentences import capital, change_text, p_text, rate_text, settle_text, value_text
from prefine.formatting import plural
from prefine.significance import is_shown


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
    if group.missing:
        text += f" {plural(group.missing, 'item')} had no answer of one of the models."
    return group.model_copy(update={"p_adjusted": p_adjusted, "finding": finding, "sentence": text})


def with_rate_finding(rate: WinRate, p_adjusted: float | None = None) -> WinRate:
    """A win rate with the finding that its interval, its test and a corrected p give, and the sentence for it."""
    if rate.rate is None or rate.rate.low is None or rate.rate.high is None:
        return rate
    above = Estimate(
        value=rate.rate.value - 0.5, low=rate.rate.low - 0.5, high=rate.rate.high - 0.5, count=rate.rate.count
    )
    finding = finding_of(above, rate.p, p_adjusted, "higher")
    counts = f"{plural(rate.wins, 'win')}, {plural(rate.ties, 'tie')}, {plural(rate.losses, 'loss', 'losses')}"
    shown = ", no difference shown" if finding == "no difference shown" else ""
    text = (
        f"Judged by {rate.judge}, the candidate wins {rate_text(rate.rate)}, ties as one half{shown}: {counts}, "
        f"{p_text(rate.p, p_adjusted)}."
    )
    if shown:
        text += settle_text(rate.more_prompts)
    return rate.model_copy(update={"p_adjusted": p_adjusted, "finding": finding, "sentence": text})


def finding_of(change: Estimate, p: float | None, p_adjusted: float | None, better: Direction) -> Finding:
    """What a change shows: something only if the test, corrected if it is, and the interval agree."""
    if not is_shown(interval_of(change), p if p_adjusted is None else p_adjusted):
        return "no difference shown"
    if better == "neither":
        return "differs"
    return "better" if (change.value > 0) == (better == "higher") else "worse"
