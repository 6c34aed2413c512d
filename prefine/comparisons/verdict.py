"""The judgement on a candidate: better, worse or no difference shown, and what got worse all the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from prefine.comparisons.result import Metric, RegressionGroup, Verdict, WinRate
from prefine.comparisons.statistics import ALL_CATEGORIES
from prefine.comparisons.win_rate import coverage
from prefine.formatting import listing, plural

# Verdicts are not missing at random: a judge that is down or refuses has seen the first prompts, or the easy ones.
_LEAST_JUDGED = 0.9
_MOST_CATEGORIES = 3
# Metrics that measure one thing: the words that an answer shares with its reference, the likelier answer of a pair.
_ALIKE = (("rouge_l", "rouge_1", "rouge_2", "bleu", "chrf"), ("pair_accuracy", "pair_margin"))

_NOTHING_DECIDES = (
    "Nothing that was computed says which model is better: name a reward model (--reward), a judge (--judge) or "
    "preference pairs (--pairs)."
)

_Found = Metric | WinRate | RegressionGroup


def verdict(
    decided_by: str,
    metrics: Sequence[Metric],
    win_rates: Sequence[WinRate],
    regression: Sequence[RegressionGroup],
    benchmarks: Sequence[Metric] = (),
) -> Verdict:
    """The judgement, from findings that are corrected for their number (`statistics.corrected`).

    Args:
        decided_by: the judge of the win rate, or the name of the metric, that decides; "" if nothing does. A judge that
            gave too few verdicts decides nothing. What got worse is named in any case.

    Raises:
        ValueError: nothing has that name.
    """
    decides = _named(decided_by, metrics, win_rates, benchmarks) if decided_by else None
    everything: list[_Found] = [*win_rates, *metrics, *regression, *benchmarks]
    others = [each for each in everything if each is not decides]
    worse, improved = (_facts([each for each in others if each.finding == found]) for found in ("worse", "better"))
    decision: Literal["better", "worse", "no difference shown"] = "no difference shown"
    judged, of = coverage(decides) if isinstance(decides, WinRate) else (1, 1)
    enough = judged >= _LEAST_JUDGED * of
    if decides is not None and enough and (decides.finding == "better" or decides.finding == "worse"):
        decision = decides.finding
    sentence = _NOTHING_DECIDES if decides is None else decides.sentence
    if judged and not enough:
        sentence += f" {decided_by} gave verdicts on {judged} of {plural(of, 'prompt')}, too few to decide."
    if worse:
        lead = "Also worse" if decision == "worse" else "But worse"
        sentence += f" {lead}: {listing([_short(each, regression) for each, _ in worse])}."
    return Verdict(
        decision=decision,
        decided_by=decided_by,
        sentence=sentence,
        regressions=[sentence for _, sentence in worse],
        improvements=[sentence for _, sentence in improved],
        more_prompts=decides.more_prompts if decides and enough and decision == "no difference shown" else None,
    )


def _facts(found: Sequence[_Found]) -> list[tuple[_Found, str]]:
    """Each finding with its sentence; metrics that measure one thing are one finding."""
    facts: list[tuple[_Found, str]] = []
    counted: set[str] = set()
    by_name = {each.name: each for each in found if isinstance(each, Metric)}
    for each in found:
        name = each.name if isinstance(each, Metric) else ""
        if name in counted:
            continue
        family = next((names for names in _ALIKE if name in names), (name,))
        alike = [by_name[other] for other in family if other in by_name]
        counted.update(family if alike else ())
        first = alike[0] if alike else each
        likewise = f" Likewise {listing([other.title for other in alike[1:]])}." if len(alike) > 1 else ""
        facts.append((first, first.sentence + likewise))
    return facts


def _named(
    name: str, metrics: Sequence[Metric], win_rates: Sequence[WinRate], benchmarks: Sequence[Metric]
) -> Metric | WinRate:
    for rate in win_rates:
        if rate.judge == name:
            return rate
    for metric in (*metrics, *benchmarks):
        if metric.name == name:
            return metric
    raise ValueError(f"nothing is called {name}")


def _short(worse: _Found, regression: Sequence[RegressionGroup]) -> str:
    """What got worse in a few words; its sentence has the figures. Of the whole regression set also where most was
    lost.
    """
    if isinstance(worse, WinRate):
        return f"win rate by {worse.judge}"
    if not isinstance(worse, RegressionGroup) or worse.category != ALL_CATEGORIES:
        return worse.title
    losing = [group for group in regression if group is not worse and group.lost > group.gained]
    losing.sort(key=lambda group: group.gained - group.lost)
    where = listing([f"{group.title}: {group.lost} lost" for group in losing[:_MOST_CATEGORIES]])
    return f"{worse.title} ({where})" if where else worse.title
