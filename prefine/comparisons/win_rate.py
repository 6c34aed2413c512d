"""How often a judge preferred the candidate: ties as one half and left out, and at equal length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from prefine.comparisons.estimates import estimate
from prefine.comparisons.findings import with_rate_finding
from prefine.comparisons.length_control import LENGTH_CONTROL, length_controlled
from prefine.comparisons.result import AnswerRow, Estimate, Winner, WinRate
from prefine.formatting import percent
from prefine.significance import change_of_share

_WORTH = {"candidate": 1.0, "tie": 0.5, "baseline": 0.0}
_LARGEST_LENGTH_EFFECT = 0.10


WITHOUT_VOTE = "without a vote"
"""Why a prompt has no verdict of people: nobody was asked about it, which is no failure."""


def coverage(rate: WinRate) -> tuple[int, int]:
    """On how many prompts a judge gave a verdict, and of how many; prompts without people's votes do not count."""
    judged = rate.wins + rate.ties + rate.losses
    return judged, judged + sum(count for reason, count in rate.failed.items() if reason != WITHOUT_VOTE)


def length_difference(row: AnswerRow) -> float:
    """How much longer the candidate's answer is, in characters: tokens of two models do not compare, and endpoints may
    not count them."""
    return float(len(row.candidate.text) - len(row.baseline.text))


def win_rate(
    judge: str, winners: Sequence[Winner | None], length_differences: Sequence[float], **extra: Any
) -> WinRate:
    """A judge's verdicts, one a prompt, as a win rate.

    Args:
        winners: None where the judge gave no verdict.
        length_differences: of the answers (see `length_difference`), prompt by prompt; empty if unknown.
        extra: further fields of the result: consistency, spent, failed, warnings.
    """
    counts = Counter(winner for winner in winners if winner is not None)
    wins, ties, losses = counts["candidate"], counts["tie"], counts["baseline"]
    failed = dict(extra.pop("failed", {}))
    if (unnamed := len(winners) - counts.total() - sum(failed.values())) > 0:
        failed["no verdict"] = failed.get("no verdict", 0) + unnamed
    found = change_of_share(wins, losses, counts.total())
    if found is None or found.interval is None:
        why = "the judge gave no verdict"
        nothing: dict[str, Any] = {"finding": "not computed", "sentence": f"{judge}: {why}.", "why_not": why}
        return WinRate(judge=judge, wins=0, ties=0, losses=0, failed=failed, **nothing, **extra)
    # A win rate is one half and half of the change of paired shares: ties are prompts that do not differ.
    rate = Estimate(
        value=0.5 + found.value / 2,
        low=0.5 + found.interval.low / 2,
        high=0.5 + found.interval.high / 2,
        count=found.count,
    )
    controlled, warnings = _length_controlled(winners, length_differences, rate)
    return with_rate_finding(
        WinRate(
            judge=judge,
            wins=wins,
            ties=ties,
            losses=losses,
            rate=rate,
            decided=estimate([1.0] * wins + [0.0] * losses, True),
            length_controlled=controlled,
            length_control="" if controlled is None else LENGTH_CONTROL,
            p=found.p,
            finding="no difference shown",
            sentence="",
            more_prompts=found.more_prompts,
            failed=failed,
            warnings=[*extra.pop("warnings", []), *warnings],
            **extra,
        )
    )


def _length_controlled(
    winners: Sequence[Winner | None], differences: Sequence[float], rate: Estimate
) -> tuple[Estimate | None, list[str]]:
    """The rate at equal length, and what to warn of."""
    if not differences:
        return None, ["No length-controlled win rate: the lengths of the answers are not known."]
    judged = [(_WORTH[winner], by) for winner, by in zip(winners, differences, strict=True) if winner is not None]
    found = length_controlled([win for win, _ in judged], [by for _, by in judged])
    if found.rate is None:
        return None, [f"No length-controlled win rate: {found.why_not}."]
    if abs(found.rate.value - rate.value) <= _LARGEST_LENGTH_EFFECT:
        return found.rate, []
    points = round(100 * abs(found.rate.value - rate.value))
    return found.rate, [
        f"At equal length the win rate is {percent(found.rate.value)}, not {percent(rate.value)}, a difference of "
        f"{points} points: this judge prefers {'longer' if found.favours_longer else 'shorter'} answers."
    ]
