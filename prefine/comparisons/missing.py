"""What a comparison could not compute, and why: in one place for report.json, the console and the page."""

from __future__ import annotations

from prefine.comparisons.result import Comparison, WinRate
from prefine.comparisons.win_rate import coverage
from prefine.formatting import plural


def with_missing(comparison: Comparison) -> Comparison:
    """The comparison, with metrics and judges that have no figure in `not_computed`."""
    judges = {f"judge {rate.judge}": _why_incomplete(rate) for rate in comparison.win_rates}
    found = {what: why for what, why in comparison.not_computed.items() if what not in judges}
    for metric in (*comparison.metrics, *comparison.benchmarks):
        if metric.why_not and metric.name not in found:
            found[metric.title] = metric.why_not
    found |= {judge: why for judge, why in judges.items() if why}
    return comparison.model_copy(update={"not_computed": found})


def _why_incomplete(rate: WinRate) -> str:
    """Why a judge has no win rate, or not of all prompts; "" if it has."""
    judged, of = coverage(rate)
    if judged == of:
        return rate.why_not
    reasons = "; ".join(f"{reason} ({count})" for reason, count in rate.failed.items()) or rate.why_not
    return f"no verdict on {of - judged} of {plural(of, 'prompt')}: {reasons}"
