"""What the changes of metrics, win rates and regression groups show, and the sentence for it."""

from __future__ import annotations

from prefine.comparisons.estimates import interval_of
from prefine.comparisons.result import Direction, Estimate, Finding, Metric, RegressionGroup, WinRate
from prefine.comparisons.sentences import capital, change_text, p_text, rate_text, settle_text, value_text
from prefine.formatting import plural
from prefine.significance import is_shown, more_prompts_corrected


def with_finding(metric: Metric, p_adjusted: float | None = None) -> Metric:
    """A metric with the finding that its change, its test and a corrected p give, and the sentence for it."""
    if metric.change is None:
        return metric
    finding = finding_of(metric.change, metric.p, p_adjusted, metric.better)
    more = _more_prompts(metric.change, metric.p, p_adjusted, metric.more_prompts)
    change = change_text(metric.change, metric.unit)
    count = plural(metric.change.count, "prompt")
    text = f"{capital(metric.title)}: {finding}: {change}, {p_text(metric.p, p_adjusted)}, {count}."
    if metric.candidate is not None and metric.baseline is not None:
        now, was = (value_text(each.value, metric.unit) for each in (metric.candidate, metric.baseline))
        text = f"{text[:-1]}; candidate {now}, baseline {was}."
    if finding == "no difference shown" and metric.better != "neither":
        text += settle_text(more)
    update = {"p_adjusted": p_adjusted, "finding": finding, "sentence": text, "more_prompts": more}
    return metric.model_copy(update=update)


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
    more = _more_prompts(above, rate.p, p_adjusted, rate.more_prompts)
    is_settled = finding != "no difference shown"
    lead = f"the candidate is {finding}: it" if is_settled else f"{finding}: the candidate"
    text = (
        f"Judged by {rate.judge}, {lead} wins {rate_text(rate.rate)}, ties as one half: {counts}, "
        f"{p_text(rate.p, p_adjusted)}."
    )
    if not is_settled:
        text += settle_text(more)
    update = {"p_adjusted": p_adjusted, "finding": finding, "sentence": text, "more_prompts": more}
    return rate.model_copy(update=update)


def _more_prompts(change: Estimate, p: float | None, p_adjusted: float | None, more: int | None) -> int | None:
    """How many more prompts would show a change; of one that is shown until it is corrected, after the correction.

    Args:
        more: as many as would show it without a correction; None if they are there already.
    """
    if p is None or p_adjusted is None or not is_shown(interval_of(change), p):
        return more
    return None if is_shown(interval_of(change), p_adjusted) else more_prompts_corrected(p, p_adjusted, change.count)


def finding_of(change: Estimate, p: float | None, p_adjusted: float | None, better: Direction) -> Finding:
    """What a change shows: something only if the test, corrected if it is, and the interval agree."""
    if not is_shown(interval_of(change), p if p_adjusted is None else p_adjusted):
        return "no difference shown"
    if better == "neither":
        return "differs"
    return "better" if (change.value > 0) == (better == "higher") else "worse"
