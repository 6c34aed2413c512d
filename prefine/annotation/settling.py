"""From where on more labels do not change which of two models is preferred.

The interval of a win rate is right at one moment that was chosen beforehand. Who looks after every label and stops at
the first interval without 50 % finds differences between equal models far more often than in 5 % of projects. The test
here may be looked at after every label: it keeps its 5 % over all looks together, if items get no more labels. What it
costs to look while items still wait for labels was measured: see docs/annotation.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prefine.annotation.records import Judgement
from prefine.annotation.statistics import between, winner_of
from prefine.comparisons.result import Winner
from prefine.formatting import plural
from prefine.significance import ALPHA

# Where the share of wins is expected if it is not one half: Beta(5, 5), most of it between 20 and 80 %.
_PRIOR = 5.0
_MOST_ITEMS = 1_000_000


@dataclass(frozen=True, slots=True)
class Settling:
    """When the preference between two models was settled, in labels: votes in the order in which items got them.

    Attributes:
        leader: the model that is preferred so far; None if they are level.
        labels: so far.
        leads_since: number of the label from which `leader` has been ahead without a break; None without a leader.
        settled_at: number of the label at which the test showed a difference; None if it did not yet.
        more: about how many more labels would settle it if the rate stays as it is; None if it is settled, or if
            nothing can be said.
        p: of the test over all looks; at most 1.
    """

    leader: str | None
    labels: int
    leads_since: int | None
    settled_at: int | None
    more: int | None
    p: float

    @property
    def sentence(self) -> str:
        """The figures in words."""
        if self.leader is None:
            return f"Neither model is ahead after {plural(self.labels, 'label')}."
        text = f"{self.leader} has been ahead since label {self.leads_since} of {self.labels}. "
        if self.settled_at is not None and (self.leads_since or 0) > self.settled_at:
            return text + f"But label {self.settled_at} settled it for the other model: the items differ with time."
        if self.settled_at is not None:
            return text + f"From label {self.settled_at} it is settled: you may stop labelling."
        if self.more is None:
            return text + "It is not settled, and how many more labels would settle it cannot be said."
        return text + f"It is not settled: about {plural(self.more, 'more label')} would, if the rate stays."


def settling(judgements: Sequence[Judgement], candidate: str, baseline: str, criterion: str | None = None) -> Settling:
    """When the preference between two models was settled.

    An item is one observation, taken when it got its last label, by the majority of its labels. The test is of the
    items that one model won: a mixture of likelihood ratios against a rate of one half, a martingale if the models are
    equal, so that it ever reaches 1 / 0.05 with a chance of at most 5 % (Ville; Robbins 1970, Annals of Mathematical
    Statistics 41).
    """
    wins = losses = labels = since = 0
    settled_at, largest, ahead = None, 0.0, 0
    for count, winner in _verdicts(judgements, candidate, baseline, criterion):
        wins, losses = wins + (winner == "candidate"), losses + (winner == "baseline")
        leads = (wins > losses) - (wins < losses)
        if leads != ahead:
            ahead, since = leads, labels + 1
        labels += count
        largest = max(largest, _log_evidence(wins, losses))
        if settled_at is None and largest >= -math.log(ALPHA):
            settled_at = labels
    items = len(between(judgements, candidate, baseline, criterion))
    more = None if settled_at or not ahead else _more_items(wins, losses, items)
    return Settling(
        leader={1: candidate, 0: None, -1: baseline}[ahead],
        labels=labels,
        leads_since=since if ahead else None,
        settled_at=settled_at,
        more=None if more is None else _rounded(more * labels / items),
        p=min(1.0, math.exp(-largest)),
    )


def _verdicts(
    judgements: Sequence[Judgement], candidate: str, baseline: str, criterion: str | None
) -> Iterator[tuple[int, Winner]]:
    """Number of labels and winner of each item, in the order of the items' last labels."""
    last: dict[int, float] = {}
    for each in judgements:
        if each.criterion == criterion and not each.repeat:
            last[each.item] = max(each.at, last.get(each.item, each.at))
    for units in sorted(between(judgements, candidate, baseline, criterion), key=lambda units: last[units[0].item]):
        yield len({name for unit in units for name in unit.values}), winner_of(units, candidate, baseline)


def _log_evidence(wins: float, losses: float) -> float:
    """Logarithm of the likelihood ratio of Beta(5, 5)-distributed rates to a rate of one half."""
    from scipy.special import betaln

    ratio = betaln(wins + _PRIOR, losses + _PRIOR) - betaln(_PRIOR, _PRIOR)
    return float(ratio) + (wins + losses) * math.log(2)


def _more_items(wins: int, losses: int, items: int) -> int | None:
    """How many more items settle it if wins, losses and ties go on in the same shares; None above a million."""

    def settled(more: int) -> bool:
        factor = 1 + more / items
        return _log_evidence(wins * factor, losses * factor) >= -math.log(ALPHA)

    low, high = 0, 1
    while not settled(high):
        low, high = high, 2 * high
        if high > _MOST_ITEMS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if settled(middle) else (middle, high)
    return high


def _rounded(labels: float) -> int:
    """Two significant digits, upwards."""
    step: int = 10 ** max(0, math.floor(math.log10(max(1.0, labels))) - 1)
    return math.ceil(labels / step) * step
